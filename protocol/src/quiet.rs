//! Log lines about the misdeeds of peers: some a second and no more, so that a flood of frames or
//! connections is not a flood of lines on the disk. What is left out is counted, and every misdeed
//! has a metric that counts it whether it was logged or not.

/// Lines a second of one kind: enough to see what goes on, and a few MiB an hour at worst.
const LINES_PER_SECOND: u32 = 10;

/// The limit of one kind of line.
#[derive(Debug, Default)]
pub struct Quiet {
    second: u64,
    lines: u32,
    left_out: u64,
}

impl Quiet {
    /// Whether a line may be written now; and how many were left out since the last that was.
    /// `now_ns` is on any clock that does not go back.
    pub fn line(&mut self, now_ns: u64) -> Option<u64> {
        let second = now_ns / 1_000_000_000;
        if second != self.second {
            self.second = second;
            self.lines = 0;
        }
        if self.lines >= LINES_PER_SECOND {
            self.left_out += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_ten_lines_a_second_and_the_rest_is_counted() {
        let mut quiet = Quiet::default();
        let written = (0..1_000).filter_map(|_| quiet.line(5)).count();
        assert_eq!(written, 10);
        assert_eq!(quiet.line(1_000_000_000), Some(990));
        assert_eq!(quiet.line(1_001_000_000), Some(0));
    }
}
