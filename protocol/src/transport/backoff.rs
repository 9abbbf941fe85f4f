//! When and where to connect again: jittered exponential backoff over a list of addresses.
//!
//! No clock and no random source in here: the caller draws the number and waits. All addresses are
//! tried at once before the first wait, since the next one may be the daemon that has taken over.

use std::time::Duration;

/// Doubling waits with jitter, so that 10,000 launchers don't come back in one instant.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    /// The first wait: longer than a daemon's restart of its socket, shorter than anybody notices.
    pub const FIRST: Duration = Duration::from_millis(100);
    /// The longest wait: a daemon that is back is whole again in this time.
    pub const LONGEST: Duration = Duration::from_secs(10);

    /// Waits between these two.
    #[must_use]
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            failures: 0,
        }
    }

    /// The next wait: between half of the doubled time and all of it. `random` is uniform in
    /// `0.0..1.0`.
    pub fn next_wait(&mut self, random: f64) -> Duration {
        let doubled = 2_u32
            .checked_pow(self.failures)
            .and_then(|by| self.first.checked_mul(by));
        let wait = doubled.unwrap_or(self.longest).min(self.longest);
        self.failures = self.failures.saturating_add(1);
        wait.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
    }

    /// Begins anew after a success.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new(Self::FIRST, Self::LONGEST)
    }
}

/// Whether a text is `HOST:PORT`, as a [`Dialer`] takes it.
#[must_use]
pub fn is_address(text: &str) -> bool {
    text.rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

/// Cycles over addresses.
#[derive(Debug, Clone)]
pub struct Dialer {
    addresses: Vec<String>,
    next: usize,
    /// Attempts since the last success.
    tried: usize,
    backoff: Backoff,
}

impl Dialer {
    /// Tries these addresses (`host:port`) in turn. None if there are none.
    #[must_use]
    pub fn new(addresses: Vec<String>, backoff: Backoff) -> Option<Self> {
        (!addresses.is_empty()).then_some(Self {
            addresses,
            next: 0,
            tried: 0,
            backoff,
        })
    }

    /// How long to wait, and whom to try then. Waits come after each round over all addresses.
    pub fn next_attempt(&mut self, random: f64) -> (Duration, &str) {
        let round_done = self.tried > 0 && self.tried.is_multiple_of(self.addresses.len());
        let wait = if round_done {
            self.backoff.next_wait(random)
        } else {
            Duration::ZERO
        };
        let address = &self.addresses[self.next];
        self.next = (self.next + 1) % self.addresses.len();
        self.tried += 1;
        (wait, address)
    }

    /// The next attempt goes to the address after the one that came through last, at once. False if
    /// there is no other.
    pub fn pass_over(&mut self) -> bool {
        if self.addresses.len() < 2 {
            return false;
        }
        self.next = (self.next + 1) % self.addresses.len();
        self.tried = 1;
        true
    }

    /// The last attempt came through. When its connection ends, the same address is tried first,
    /// after a short wait: it may be a restart.
    pub fn succeeded(&mut self) {
        self.backoff.reset();
        self.next = (self.next + self.addresses.len() - 1) % self.addresses.len();
        // A whole number of rounds, so that a peer that accepts and hangs up is not dialled
        // without any wait.
        self.tried = self.addresses.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for good in ["scheduler:7460", "10.0.0.1:1", "[::1]:7460"] {
            assert!(is_address(good), "{good}");
        }
        for bad in ["", "scheduler", "scheduler:", ":7460", "scheduler:70000"] {
            assert!(!is_address(bad), "{bad}");
        }
    }

    #[test]
    fn waits_double_to_the_longest_and_stay_within_their_jitter() {
        let mut backoff = Backoff::default();
        let mut ends = Vec::new();
        for _ in 0..10 {
            let mut early = backoff.clone();
            let (shortest, longest) = (early.next_wait(0.0), backoff.next_wait(1.0));
            assert_eq!(shortest * 2, longest);
            ends.push(longest.as_millis());
        }
        assert_eq!(
            ends,
            [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000]
        );
        for _ in 0..100 {
            assert!(backoff.next_wait(0.5) <= Backoff::LONGEST);
        }
        backoff.reset();
        assert_eq!(backoff.next_wait(1.0), Backoff::FIRST);
    }

    #[test]
    fn all_addresses_are_tried_before_a_wait_and_the_good_one_first_again() {
        let mut dialer = Dialer::new(vec!["a".into(), "b".into()], Backoff::default()).unwrap();
        let mut next = || {
            let (wait, address) = dialer.next_attempt(1.0);
            (wait.as_millis(), address.to_owned())
        };
        assert_eq!(next(), (0, "a".into()));
        assert_eq!(next(), (0, "b".into()));
        assert_eq!(next(), (100, "a".into()));
        assert_eq!(next(), (0, "b".into()));
        assert_eq!(next(), (200, "a".into()));
        assert_eq!(next(), (0, "b".into()));
        dialer.succeeded();
        let (wait, address) = dialer.next_attempt(1.0);
        assert_eq!((wait.as_millis(), address), (100, "b"));
        let (wait, address) = dialer.next_attempt(1.0);
        assert_eq!((wait.as_millis(), address), (0, "a"));
        assert!(Dialer::new(Vec::new(), Backoff::default()).is_none());
    }

    #[test]
    fn an_address_that_came_through_can_be_passed_over() {
        let mut dialer = Dialer::new(vec!["a".into(), "b".into()], Backoff::default()).unwrap();
        assert_eq!(dialer.next_attempt(1.0).1, "a");
        dialer.succeeded();
        assert!(dialer.pass_over());
        let (wait, address) = dialer.next_attempt(1.0);
        assert_eq!((wait.as_millis(), address), (0, "b"));
        let (wait, address) = dialer.next_attempt(1.0);
        assert_eq!((wait.as_millis(), address), (100, "a"));
        let mut only = Dialer::new(vec!["a".into()], Backoff::default()).unwrap();
        assert!(!only.pass_over());
    }
}
