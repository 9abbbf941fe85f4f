//! Output on its way to the descriptors that it belongs on.

use crate::client::frames::{self, Frames};
use crate::exit::{Exit, Failure};
use pronto_controller::api::types as api;
use std::io::Write;

/// Where output goes, and how much of it has gone there.
pub(crate) struct Sink {
    stdout: Box<dyn Write + Send>,
    stderr: Box<dyn Write + Send>,
    written: [u64; 2],
    /// Bytes at the front of each that were written before the stream broke.
    skip: [u64; 2],
}

impl Sink {
    /// Our own stdout and stderr.
    pub(crate) fn own() -> Self {
        Self::new(Box::new(std::io::stdout()), Box::new(std::io::stderr()))
    }

    /// These two.
    pub(crate) fn new(stdout: Box<dyn Write + Send>, stderr: Box<dyn Write + Send>) -> Self {
        Self {
            stdout,
            stderr,
            written: [0; 2],
            skip: [0; 2],
        }
    }

    /// The output will come again from its beginning: pass over what was written.
    pub(crate) fn rewind(&mut self) {
        self.skip = self.written;
    }

    /// Writes one frame's bytes and flushes: a person may be watching.
    pub(crate) fn write(&mut self, channel: u8, bytes: &[u8]) -> Result<(), Failure> {
        let index = match channel {
            api::CHANNEL_STDOUT => 0,
            api::CHANNEL_STDERR => 1,
            _ => return Ok(()),
        };
        let skipped = usize::try_from(self.skip[index])
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        self.skip[index] -= skipped as u64;
        let fresh = &bytes[skipped..];
        if fresh.is_empty() {
            return Ok(());
        }
        let to = if index == 0 {
            &mut self.stdout
        } else {
            &mut self.stderr
        };
        let written = to.write_all(fresh).and_then(|()| to.flush());
        written.map_err(Failure::of_output)?;
        self.written[index] += fresh.len() as u64;
        Ok(())
    }
}

/// Copies output to its end, whose document it returns.
pub(crate) async fn copy_output(
    frames: &mut Frames,
    sink: &mut Sink,
) -> Result<api::OutputEnd, Failure> {
    while let Some((channel, bytes)) = frames.next().await? {
        if channel == api::CHANNEL_END {
            return frames::end(&bytes);
        }
        sink.write(channel, &bytes)?;
    }
    Err(Failure::new(Exit::Unreachable, "the output was cut off"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn output_that_comes_again_is_written_once() {
        let (out, err) = (Shared::default(), Shared::default());
        let mut sink = Sink::new(Box::new(out.clone()), Box::new(err.clone()));
        sink.write(1, b"one ").unwrap();
        sink.write(2, b"oops ").unwrap();
        sink.rewind();
        sink.write(1, b"on").unwrap();
        sink.write(1, b"e two").unwrap();
        sink.write(2, b"oops").unwrap();
        sink.write(2, b" again").unwrap();
        assert_eq!(*out.0.lock().unwrap(), b"one two");
        assert_eq!(*err.0.lock().unwrap(), b"oops again");
    }

    #[test]
    fn a_stream_that_breaks_twice_still_counts_from_the_beginning() {
        let out = Shared::default();
        let mut sink = Sink::new(Box::new(out.clone()), Box::new(Shared::default()));
        sink.write(1, b"abc").unwrap();
        sink.rewind();
        sink.write(1, b"ab").unwrap();
        sink.rewind();
        sink.write(1, b"abcd").unwrap();
        assert_eq!(*out.0.lock().unwrap(), b"abcd");
    }
}
