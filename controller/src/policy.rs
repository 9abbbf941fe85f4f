//! Who may submit what: admits, or rejects with a reason. Pure, and changes nothing itself.
//!
//! A tenant's quota counts its living instances, from admission to their committed end. The
//! arithmetic saturates towards refusal: nothing that overflows is admitted.

use crate::api::types::{QuotaLimits, QuotaRefusal, QuotaUse, RuntimeName};

/// What a tenant may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantPolicy {
    pub runtimes: Vec<RuntimeName>,
    pub privileged: bool,
    pub limits: QuotaLimits,
}

/// What a submission asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    pub runtime: RuntimeName,
    /// Root, host users, devices or mounts.
    pub privileged: bool,
    pub count: u32,
    /// Of one instance; its `instances` is 1.
    pub each: QuotaUse,
}

/// Why a submission is not admitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The runtime is not among the tenant's.
    #[error("tenant {tenant} may not use the runtime {runtime}; allowed: {allowed}")]
    Runtime {
        tenant: String,
        runtime: &'static str,
        allowed: String,
    },
    /// Privileged work is not allowed.
    #[error("tenant {tenant} may not run privileged workloads")]
    Privileged { tenant: String },
    /// A quota would be exceeded.
    #[error(
        "quota {} of tenant {} exceeded: limit {}, used {}, asked {}",
        .0.quota, .0.tenant, .0.limit, .0.used, .0.asked
    )]
    Quota(QuotaRefusal),
}

/// The quotas by name: how to read limit and use of each.
type Dimension = (
    &'static str,
    fn(&QuotaLimits) -> Option<u64>,
    fn(&QuotaUse) -> u64,
);

const DIMENSIONS: [Dimension; 5] = [
    ("instances", |l| l.instances, |u| u.instances),
    ("cpu_millis", |l| l.cpu_millis, |u| u.cpu_millis),
    ("memory_mib", |l| l.memory_mib, |u| u.memory_mib),
    ("disk_mib", |l| l.disk_mib, |u| u.disk_mib),
    ("gpu_millis", |l| l.gpu_millis, |u| u.gpu_millis),
];

/// Whether a tenant that uses so much may have this as well.
///
/// # Errors
/// The first reason why not.
pub fn admit(
    tenant: &str,
    policy: &TenantPolicy,
    used: &QuotaUse,
    ask: &Ask,
) -> Result<(), Rejection> {
    if !policy.runtimes.contains(&ask.runtime) {
        let allowed: Vec<&str> = policy.runtimes.iter().map(|r| r.name()).collect();
        return Err(Rejection::Runtime {
            tenant: tenant.to_owned(),
            runtime: ask.runtime.name(),
            allowed: if allowed.is_empty() {
                "none".to_owned()
            } else {
                allowed.join(", ")
            },
        });
    }
    if ask.privileged && !policy.privileged {
        return Err(Rejection::Privileged {
            tenant: tenant.to_owned(),
        });
    }
    for (quota, limit, use_of) in DIMENSIONS {
        let Some(limit) = limit(&policy.limits) else {
            continue;
        };
        let asked = use_of(&ask.each).saturating_mul(u64::from(ask.count));
        let used = use_of(used);
        if asked > 0 && used.saturating_add(asked) > limit {
            return Err(Rejection::Quota(QuotaRefusal {
                tenant: tenant.to_owned(),
                quota: quota.to_owned(),
                limit,
                used,
                asked,
            }));
        }
    }
    Ok(())
}

/// Adds `count` times `each` to what is used.
pub fn charge(used: &mut QuotaUse, each: &QuotaUse, count: u32) {
    let times = u64::from(count);
    used.instances += each.instances * times;
    used.cpu_millis += each.cpu_millis * times;
    used.memory_mib += each.memory_mib * times;
    used.disk_mib += each.disk_mib * times;
    used.gpu_millis += each.gpu_millis * times;
}

/// Takes one instance's share off what is used.
///
/// # Panics
/// If it was never charged: a fault of the planner.
pub fn release(used: &mut QuotaUse, each: &QuotaUse) {
    let take = |used: &mut u64, each: u64| {
        *used = used
            .checked_sub(each)
            .expect("a release follows its charge");
    };
    take(&mut used.instances, each.instances);
    take(&mut used.cpu_millis, each.cpu_millis);
    take(&mut used.memory_mib, each.memory_mib);
    take(&mut used.disk_mib, each.disk_mib);
    take(&mut used.gpu_millis, each.gpu_millis);
}

/// A token bucket over a given clock: `rate` instances a second, a burst of ten seconds' worth.
#[derive(Clone, Copy, Debug)]
pub struct RateLimit {
    rate_per_s: Option<u32>,
    /// In billionths of an instance, so that nanoseconds multiply without a division. Below zero: a
    /// batch was larger than the burst, and is not made up for yet.
    tokens_nano: i128,
    last_ns: i64,
}

/// A burst may be so many seconds of the sustained rate: a script's loop should not trip over it.
const BURST_S: i128 = 10;
const NANO: i128 = 1_000_000_000;

/// Why a submission must wait, or is in vain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TooFast {
    /// Come back after so many milliseconds.
    Wait { ms: u64 },
    /// The rate is zero.
    Never,
}

impl RateLimit {
    /// A full bucket. A rate of zero means that nothing is ever submitted.
    #[must_use]
    pub fn new(rate_per_s: Option<u32>, now_ns: i64) -> Self {
        Self {
            rate_per_s,
            tokens_nano: i128::from(rate_per_s.unwrap_or_default()) * BURST_S * NANO,
            last_ns: now_ns,
        }
    }

    /// Takes `count` tokens. A batch above the burst is one request: it passes when the bucket is full,
    /// and leaves a debt.
    ///
    /// # Errors
    /// When to ask again.
    pub fn take(&mut self, count: u32, now_ns: i64) -> Result<(), TooFast> {
        let Some(rate) = self.rate_per_s else {
            return Ok(());
        };
        if rate == 0 {
            return Err(TooFast::Never);
        }
        let rate = i128::from(rate);
        let full = rate * BURST_S * NANO;
        let passed = i128::from(now_ns.saturating_sub(self.last_ns).max(0));
        self.tokens_nano = (self.tokens_nano + passed * rate).min(full);
        self.last_ns = now_ns;
        let wanted = i128::from(count) * NANO;
        let missing = wanted.min(full) - self.tokens_nano;
        if missing <= 0 {
            self.tokens_nano -= wanted;
            return Ok(());
        }
        let ms = (missing.unsigned_abs().div_ceil(rate.unsigned_abs())).div_ceil(1_000_000);
        Err(TooFast::Wait {
            ms: u64::try_from(ms).unwrap_or(u64::MAX),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(instances: u64) -> TenantPolicy {
        TenantPolicy {
            runtimes: vec![RuntimeName::Exec],
            privileged: false,
            limits: QuotaLimits {
                instances: Some(instances),
                ..QuotaLimits::default()
            },
        }
    }

    fn ask(count: u32) -> Ask {
        Ask {
            runtime: RuntimeName::Exec,
            privileged: false,
            count,
            each: QuotaUse {
                instances: 1,
                cpu_millis: 100,
                ..QuotaUse::default()
            },
        }
    }

    #[test]
    fn a_refusal_names_quota_limit_used_and_asked() {
        let mut used = QuotaUse::default();
        assert_eq!(admit("t", &policy(10), &used, &ask(10)), Ok(()));
        charge(&mut used, &ask(4).each, 4);
        let refusal = admit("t", &policy(10), &used, &ask(7)).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "quota instances of tenant t exceeded: limit 10, used 4, asked 7"
        );
        release(&mut used, &ask(1).each);
        assert_eq!(admit("t", &policy(10), &used, &ask(7)), Ok(()));
    }

    #[test]
    fn runtimes_and_privilege_are_refused_by_name() {
        let none = QuotaUse::default();
        let docker = Ask {
            runtime: RuntimeName::Docker,
            ..ask(1)
        };
        let text = admit("t", &policy(10), &none, &docker).unwrap_err();
        assert_eq!(
            text.to_string(),
            "tenant t may not use the runtime docker; allowed: exec"
        );
        let privileged = Ask {
            privileged: true,
            ..ask(1)
        };
        assert!(admit("t", &policy(10), &none, &privileged).is_err());
    }

    #[test]
    fn the_rate_limit_says_when_to_come_back() {
        let mut limit = RateLimit::new(Some(10), 0);
        let wait = |ms| Err(TooFast::Wait { ms });
        assert_eq!(limit.take(100, 0), Ok(()));
        assert_eq!(limit.take(1, 0), wait(100));
        assert_eq!(limit.take(1, 100_000_000), Ok(()));
        assert_eq!(limit.take(5, 100_000_000), wait(500));
        assert_eq!(RateLimit::new(None, 0).take(u32::MAX, 0), Ok(()));
        assert_eq!(
            RateLimit::new(Some(0), 0).take(1, i64::MAX),
            Err(TooFast::Never)
        );
    }

    #[test]
    fn a_batch_above_the_burst_is_made_up_for() {
        let mut limit = RateLimit::new(Some(10), 0);
        assert_eq!(limit.take(1000, 0), Ok(()));
        // 900 are owed, which takes 90 s.
        assert_eq!(limit.take(1, 0), Err(TooFast::Wait { ms: 90_100 }));
        assert_eq!(limit.take(1, 90_100_000_000), Ok(()));
    }
}
