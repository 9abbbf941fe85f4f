//! An instance's log on disk: both streams in one sequence of chunks, capped by dropping the
//! oldest segment.
//!
//! ```text
//! <attempt>/log.000000, log.000001, …        a segment is full at a quarter of the cap
//! segment:  "PLOG" · version u8 (1) · 3 zero bytes · offset u64    bytes of output before it
//! chunk:    channel u8 (1 stdout, 2 stderr) · 3 zero bytes · length u32 · unix_ms u64 · bytes
//! ```
//!
//! Little-endian. A reader sees that something was dropped from the offset of the first segment,
//! and how much. The last chunk may be cut by a crash; a reader stops before it. Invariant: a
//! log's files never hold more than the cap.

use pronto_payloads::stream::Channel;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Segments that a full log has: dropping one loses a quarter.
const SEGMENTS: u64 = 4;
/// The smallest cap that is obeyed: below it a log would be mostly headers.
pub const CAP_MIN_BYTES: u64 = 64 * 1024;
/// The largest chunk: what one read of a pipe gives.
pub const CHUNK_BYTES: usize = 64 * 1024;
const HEADER_BYTES: usize = 16;
const MAGIC: [u8; 8] = *b"PLOG\x01\0\0\0";

/// Writes a log. Makes its first file when there is something to write.
#[derive(Debug)]
pub struct LogWriter {
    directory: PathBuf,
    segment_bytes: u64,
    file: Option<File>,
    index: u64,
    written: u64,
    /// Output bytes before the present segment.
    offset: u64,
    /// Output bytes in it.
    payload: u64,
}

impl LogWriter {
    /// A log in this directory, continued if there is one.
    #[must_use]
    pub fn new(directory: PathBuf, cap_bytes: u64) -> Self {
        Self {
            directory,
            segment_bytes: cap_bytes.max(CAP_MIN_BYTES) / SEGMENTS,
            file: None,
            index: 0,
            written: 0,
            offset: 0,
            payload: 0,
        }
    }

    /// Continues behind what an earlier process wrote, if anything.
    ///
    /// # Errors
    /// If the directory can't be read.
    pub fn resume(&mut self) -> io::Result<()> {
        let segments = segments(&self.directory)?;
        let (Some(first), Some(last)) = (segments.first(), segments.last()) else {
            return Ok(());
        };
        let mut reader = LogReader::at(&self.directory, *first)?;
        while reader.next_chunk(&mut Vec::new())?.is_some() {}
        self.index = last + 1;
        self.offset = reader.offset;
        Ok(())
    }

    /// Appends output, as one chunk if a segment has room for it.
    ///
    /// # Errors
    /// If it can't be written, as on a full disk.
    pub fn append(&mut self, channel: Channel, unix_ms: u64, bytes: &[u8]) -> io::Result<()> {
        let most = usize::try_from(self.segment_bytes).unwrap_or(usize::MAX) - 2 * HEADER_BYTES;
        bytes
            .chunks(most.min(CHUNK_BYTES))
            .try_for_each(|chunk| self.append_chunk(channel, unix_ms, chunk))
    }

    fn append_chunk(&mut self, channel: Channel, unix_ms: u64, bytes: &[u8]) -> io::Result<()> {
        let total = HEADER_BYTES + bytes.len();
        if self.file.is_none() || self.written + total as u64 > self.segment_bytes {
            self.rotate()?;
        }
        let mut header = [0; HEADER_BYTES];
        header[0] = channel as u8;
        let length = u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        header[4..8].copy_from_slice(&length.to_le_bytes());
        header[8..].copy_from_slice(&unix_ms.to_le_bytes());
        if let Some(file) = &mut self.file {
            if let Err(error) = write_chunk(file, &header, bytes) {
                // What comes behind a half could not be read. A segment that can't be cut is full.
                if file.set_len(self.written).is_err() {
                    self.written = self.segment_bytes;
                }
                return Err(error);
            }
            self.written += total as u64;
            self.payload += bytes.len() as u64;
        }
        Ok(())
    }

    /// Whether anything was written.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.file.is_none() && self.index == 0
    }

    fn rotate(&mut self) -> io::Result<()> {
        if self.file.take().is_some() {
            self.index += 1;
            self.offset += self.payload;
        }
        self.payload = 0;
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(segment_path(&self.directory, self.index))?;
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(&MAGIC);
        header[8..].copy_from_slice(&self.offset.to_le_bytes());
        file.write_all(&header)?;
        self.file = Some(file);
        self.written = HEADER_BYTES as u64;
        if let Some(old) = self.index.checked_sub(SEGMENTS) {
            match fs::remove_file(segment_path(&self.directory, old)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

fn write_chunk(file: &mut File, header: &[u8], bytes: &[u8]) -> io::Result<()> {
    let written = file.write_vectored(&[IoSlice::new(header), IoSlice::new(bytes)])?;
    if written < header.len() + bytes.len() {
        // Rare: the disk filled up in between. Finish or fail as a whole.
        let all: Vec<u8> = header.iter().chain(bytes).copied().collect();
        file.write_all(&all[written..])?;
    }
    Ok(())
}

/// One chunk without its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Which stream.
    pub channel: Channel,
    /// When it was written, by this machine's clock.
    pub unix_ms: u64,
    /// Output bytes that were dropped between the chunk before and this one.
    pub dropped_bytes: u64,
}

/// Reads a log from its beginning, also while it is written and while its oldest part is dropped.
#[derive(Debug)]
pub struct LogReader {
    directory: PathBuf,
    file: Option<File>,
    index: u64,
    position: u64,
    /// Output bytes before the next chunk.
    offset: u64,
    dropped: u64,
}

impl LogReader {
    /// A reader at the beginning of what is left.
    ///
    /// # Errors
    /// If the directory can't be read; that there is no log yet is no error.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let first = segments(directory)?.first().copied().unwrap_or(0);
        Self::at(directory, first)
    }

    fn at(directory: &Path, index: u64) -> io::Result<Self> {
        let mut reader = Self {
            directory: directory.to_owned(),
            file: None,
            index,
            position: 0,
            offset: 0,
            dropped: 0,
        };
        reader.open_segment()?;
        Ok(reader)
    }

    /// The next chunk that is whole, its bytes in `bytes`; none while there is none.
    ///
    /// # Errors
    /// If a file can't be read or is not a log.
    pub fn next_chunk(&mut self, bytes: &mut Vec<u8>) -> io::Result<Option<Chunk>> {
        loop {
            if self.file.is_none() && !self.open_segment()? {
                return Ok(None);
            }
            if let Some(chunk) = self.read_chunk(bytes)? {
                return Ok(Some(chunk));
            }
            if !self.advance()? {
                return Ok(None);
            }
        }
    }

    /// Goes to the next segment if the writer has. Segments may have been dropped on the way.
    fn advance(&mut self) -> io::Result<bool> {
        let next = segments(&self.directory)?
            .into_iter()
            .find(|index| *index > self.index);
        let Some(next) = next else { return Ok(false) };
        // The writer finished this segment before it made the next; what came since the last look
        // must be read first, unless the file was dropped meanwhile: then it is still open here.
        let mut rest = Vec::new();
        if self.peek_chunk(&mut rest)? {
            return Ok(true);
        }
        self.index = next;
        self.file = None;
        self.open_segment()
    }

    fn open_segment(&mut self) -> io::Result<bool> {
        let mut file = match File::open(segment_path(&self.directory, self.index)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let next = segments(&self.directory)?
                    .into_iter()
                    .find(|index| *index > self.index);
                let Some(next) = next else { return Ok(false) };
                self.index = next;
                return self.open_segment();
            }
            Err(error) => return Err(error),
        };
        let mut header = [0; HEADER_BYTES];
        match file.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error),
        }
        let Some((magic, offset)) = header.split_first_chunk::<8>() else {
            return Ok(false);
        };
        if *magic != MAGIC {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "not a log of a known version",
            ));
        }
        let offset = offset
            .first_chunk()
            .map_or(0, |bytes| u64::from_le_bytes(*bytes));
        self.dropped += offset.saturating_sub(self.offset);
        self.offset = offset;
        self.position = HEADER_BYTES as u64;
        self.file = Some(file);
        Ok(true)
    }

    fn peek_chunk(&mut self, bytes: &mut Vec<u8>) -> io::Result<bool> {
        let (position, offset, dropped) = (self.position, self.offset, self.dropped);
        let found = self.read_chunk(bytes)?.is_some();
        (self.position, self.offset, self.dropped) = (position, offset, dropped);
        Ok(found)
    }

    fn read_chunk(&mut self, bytes: &mut Vec<u8>) -> io::Result<Option<Chunk>> {
        let Some(file) = &mut self.file else {
            return Ok(None);
        };
        file.seek(SeekFrom::Start(self.position))?;
        let mut header = [0; HEADER_BYTES];
        if !read_whole(file, &mut header)? {
            return Ok(None);
        }
        let [channel, _, _, _, l0, l1, l2, l3, time @ ..] = header;
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let channel = Channel::from_code(channel).filter(|_| length <= CHUNK_BYTES);
        let Some(channel) = channel else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a chunk of the log is damaged",
            ));
        };
        bytes.resize(length, 0);
        if !read_whole(file, bytes)? {
            return Ok(None);
        }
        self.position += (HEADER_BYTES + length) as u64;
        self.offset += length as u64;
        let dropped_bytes = std::mem::take(&mut self.dropped);
        Ok(Some(Chunk {
            channel,
            unix_ms: u64::from_le_bytes(time),
            dropped_bytes,
        }))
    }
}

/// Whether the directory holds a log.
#[must_use]
pub fn exists(directory: &Path) -> bool {
    segments(directory).is_ok_and(|segments| !segments.is_empty())
}

/// This machine's clock: logs are compared with nothing outside of it.
#[must_use]
pub fn unix_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |time| {
            u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
        })
}

fn read_whole(file: &mut File, buffer: &mut [u8]) -> io::Result<bool> {
    match file.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn segment_path(directory: &Path, index: u64) -> PathBuf {
    directory.join(format!("log.{index:06}"))
}

/// Indices of the segments that are there, ascending.
fn segments(directory: &Path) -> io::Result<Vec<u64>> {
    let mut found: Vec<u64> = fs::read_dir(directory)?
        .filter_map(|entry| {
            entry
                .ok()?
                .file_name()
                .to_str()?
                .strip_prefix("log.")?
                .parse()
                .ok()
        })
        .collect();
    found.sort_unstable();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(reader: &mut LogReader) -> (Vec<u8>, u64) {
        let (mut output, mut dropped, mut bytes) = (Vec::new(), 0, Vec::new());
        while let Some(chunk) = reader.next_chunk(&mut bytes).unwrap() {
            output.extend_from_slice(&bytes);
            dropped += chunk.dropped_bytes;
        }
        (output, dropped)
    }

    #[test]
    fn what_is_written_is_read_with_channel_and_time() {
        let directory = tempfile::tempdir().unwrap();
        let mut reader = LogReader::open(directory.path()).unwrap();
        let mut writer = LogWriter::new(directory.path().to_owned(), CAP_MIN_BYTES);
        assert!(writer.is_empty() && !exists(directory.path()));
        let mut bytes = Vec::new();
        assert_eq!(reader.next_chunk(&mut bytes).unwrap(), None);
        writer.append(Channel::Stderr, 17, b"oh").unwrap();
        let chunk = reader.next_chunk(&mut bytes).unwrap().unwrap();
        assert_eq!(
            chunk,
            Chunk {
                channel: Channel::Stderr,
                unix_ms: 17,
                dropped_bytes: 0
            }
        );
        assert_eq!(bytes, b"oh");
        assert_eq!(reader.next_chunk(&mut bytes).unwrap(), None);
    }

    #[test]
    fn the_oldest_goes_first_and_the_drop_is_counted() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = LogWriter::new(directory.path().to_owned(), CAP_MIN_BYTES);
        let mut early = LogReader::open(directory.path()).unwrap();
        let mut written = Vec::new();
        // From a line to more than a segment, in no order that would fill one evenly.
        for number in 0..400_usize {
            let length = 300 + number * 7919 % 30_000;
            let text = format!("{number:0length$}\n");
            writer.append(Channel::Stdout, 0, text.as_bytes()).unwrap();
            written.extend_from_slice(text.as_bytes());
            let size: u64 = fs::read_dir(directory.path())
                .unwrap()
                .map(|entry| entry.unwrap().metadata().unwrap().len())
                .sum();
            assert!(size <= CAP_MIN_BYTES, "{size}");
        }
        for reader in [&mut early, &mut LogReader::open(directory.path()).unwrap()] {
            let (output, dropped) = all(reader);
            assert!(written.ends_with(&output));
            assert_eq!(dropped + output.len() as u64, written.len() as u64);
        }
        let mut writer = LogWriter::new(directory.path().to_owned(), CAP_MIN_BYTES);
        writer.resume().unwrap();
        writer.append(Channel::Stdout, 0, b"again").unwrap();
        let (output, dropped) = all(&mut LogReader::open(directory.path()).unwrap());
        assert!(output.ends_with(b"again"));
        assert_eq!(dropped + output.len() as u64, written.len() as u64 + 5);
    }
}
