//! What a guest's console says about how it ended.
//!
//! Bytes in, a verdict out: the last line `PRONTO_EXIT=N`, and whether the kernel panicked. Fed in
//! pieces as they come, and bounded whatever the guest prints.

/// What a guest prints to say with which code its work ended.
const EXIT_MARK: &str = "PRONTO_EXIT=";
/// What a Linux kernel prints when it gives up.
const PANIC_MARK: &str = "Kernel panic";
/// Longer lines are cut: neither mark is found beyond this column.
const LINE_BYTES: usize = 256;

/// Reads a console.
#[derive(Debug, Default)]
pub(super) struct Console {
    line: Vec<u8>,
    exit_code: Option<i32>,
    panicked: bool,
    spoke: bool,
}

impl Console {
    /// The next bytes of the console.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.spoke |= !bytes.is_empty();
        for &byte in bytes {
            match byte {
                // Serial consoles end lines with both; an empty line says nothing.
                b'\n' | b'\r' => self.end_line(),
                _ if self.line.len() < LINE_BYTES => self.line.push(byte),
                _ => {}
            }
        }
    }

    fn end_line(&mut self) {
        let line = String::from_utf8_lossy(&self.line);
        if let Some(code) = line
            .trim()
            .strip_prefix(EXIT_MARK)
            .and_then(|code| code.parse().ok())
        {
            self.exit_code = Some(code);
        }
        self.panicked |= line.contains(PANIC_MARK);
        self.line.clear();
    }

    /// The code of the last mark. A guest may power off before it ends its last line.
    pub(super) fn exit_code(&mut self) -> Option<i32> {
        self.end_line();
        self.exit_code
    }

    /// Whether anything was printed at all.
    pub(super) const fn spoke(&self) -> bool {
        self.spoke
    }

    /// Whether its kernel gave up.
    pub(super) const fn panicked(&self) -> bool {
        self.panicked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(console: &[&str]) -> Option<i32> {
        let mut reader = Console::default();
        console
            .iter()
            .for_each(|piece| reader.feed(piece.as_bytes()));
        reader.exit_code()
    }

    #[test]
    fn the_last_mark_at_a_line_start_counts() {
        assert_eq!(code(&["boot\r\nPRONTO_EXIT=3\r\n"]), Some(3));
        assert_eq!(code(&["PRONTO_EXIT=3\nPRONTO_EXIT=0\n"]), Some(0));
        assert_eq!(
            code(&["PRONTO_", "EXIT=-1"]),
            Some(-1),
            "cut anywhere, without a last newline"
        );
        assert_eq!(
            code(&["\rPRONTO_EXIT=4\r\r\n[ 2.7] reboot: Power down\r\n"]),
            Some(4)
        );
        for other in [
            "",
            "echo PRONTO_EXIT=3",
            "PRONTO_EXIT=",
            "PRONTO_EXIT=x",
            "PRONTO_EXIT=1 2",
        ] {
            assert_eq!(code(&[other]), None, "{other}");
        }
    }

    #[test]
    fn a_flood_without_newlines_stays_bounded() {
        let mut console = Console::default();
        console.feed(&vec![b'a'; 10_000_000]);
        assert!(console.line.capacity() <= 2 * LINE_BYTES);
        console.feed(b"\nPRONTO_EXIT=9\n[    1.0] Kernel panic - not syncing: oops\n");
        assert_eq!((console.exit_code(), console.panicked()), (Some(9), true));
    }
}
