//! The cloud-init NoCloud seed: a FAT volume labelled `CIDATA` with the files `user-data` and
//! `meta-data`, built in memory.
//!
//! FAT labels are upper case by convention; cloud-init and `findfs` look for both spellings.

use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions, format_volume};
use std::io::{Cursor, Write};

/// Room for both files at their limit of 64 KiB with air; small, since each attempt has one.
const VOLUME_BYTES: usize = 512 * 1024;
/// Exactly eleven bytes, padded, as a FAT label is.
const LABEL: [u8; 11] = *b"cidata     ";

/// The volume's bytes.
///
/// # Errors
///
/// When the files do not fit, which the limits on a START's payload exclude.
pub(super) fn volume(user_data: &str, meta_data: &str) -> std::io::Result<Vec<u8>> {
    let mut image = Cursor::new(vec![0_u8; VOLUME_BYTES]);
    let options = FormatVolumeOptions::new()
        .volume_label(LABEL)
        .fat_type(FatType::Fat12);
    format_volume(&mut image, options)?;
    {
        let volume = FileSystem::new(&mut image, FsOptions::new())?;
        let root = volume.root_dir();
        for (name, content) in [("user-data", user_data), ("meta-data", meta_data)] {
            let mut file = root.create_file(name)?;
            file.write_all(content.as_bytes())?;
            file.flush()?;
        }
    }
    Ok(image.into_inner())
}

/// What a guest is told of itself when its workload says nothing: cloud-init runs its per-instance
/// steps once for each `instance-id`, so that each attempt counts as an instance of its own.
#[must_use]
pub(super) fn default_meta_data(attempt: &str, hostname: &str) -> String {
    format!("instance-id: {attempt}\nlocal-hostname: {hostname}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn the_volume_is_labelled_and_gives_both_files_back() {
        let large = "x".repeat(pronto_payloads::limits::USER_DATA_BYTES);
        let image = volume(&large, "instance-id: one\n").unwrap();
        let volume = FileSystem::new(Cursor::new(image), FsOptions::new()).unwrap();
        assert_eq!(volume.volume_label_as_bytes(), b"cidata");
        let mut content = String::new();
        volume
            .root_dir()
            .open_file("user-data")
            .unwrap()
            .read_to_string(&mut content)
            .unwrap();
        assert_eq!(content, large);
        content.clear();
        volume
            .root_dir()
            .open_file("meta-data")
            .unwrap()
            .read_to_string(&mut content)
            .unwrap();
        assert_eq!(content, "instance-id: one\n");
    }
}
