//! How people write quantities, and how they read them: sizes, durations, cores, GPUs, lists.
//!
//! Binary units throughout: K, M, G and T are powers of 1024. A quantity that can't be kept
//! exactly is rounded up, never down, since it is a demand.

use pronto_controller::spec;
use pronto_payloads::demand::{GPU_MILLIS, Resource};
use pronto_payloads::limits;
use std::time::Duration;

/// `0.5`, `2` or `500m` cores, in thousandths of a core.
pub(crate) fn cpu_millis(text: &str) -> Result<u32, String> {
    let accepted = "accepted: cores such as 2, 0.5 or 500m, from 0.001";
    let millis = match text.strip_suffix('m') {
        Some(digits) => digits.parse().ok(),
        None => thousandths(text).and_then(|millis| u32::try_from(millis).ok()),
    };
    millis
        .filter(|&millis| millis > 0)
        .ok_or_else(|| accepted.to_owned())
}

/// `64M`, `1.5G` or a bare number of MiB, in MiB.
pub(crate) fn size_mib(text: &str) -> Result<u32, String> {
    let accepted = "accepted: a size such as 64M, 1.5G or 512K (binary units), or a number of MiB";
    let bytes = if text.bytes().all(|byte| byte.is_ascii_digit()) && !text.is_empty() {
        text.parse::<u64>()
            .ok()
            .and_then(|mib| mib.checked_mul(MIB))
    } else {
        bytes(text).ok()
    };
    bytes
        .and_then(|bytes| u32::try_from(bytes.div_ceil(MIB)).ok())
        .ok_or(accepted.to_owned())
}

const MIB: u64 = 1 << 20;

/// `512`, `64K`, `1.5GiB`: bytes.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let accepted = || "accepted: a size such as 4096, 64K, 1.5M or 2G (binary units)".to_owned();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1_u64,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => MIB,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        _ => return Err(accepted()),
    };
    let scaled = thousandths(digits).and_then(|thousandths| thousandths.checked_mul(unit));
    scaled
        .map(|value| value.div_ceil(1000))
        .ok_or_else(accepted)
}

/// A decimal number, not negative, in thousandths; more than three decimals round up.
fn thousandths(text: &str) -> Option<u64> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    // Eighteen decimals are finer than anything measured, and keep the arithmetic in range.
    if !digits(whole) || !digits(decimals) || decimals.len() > 18 {
        return None;
    }
    let scale = 10_u128.pow(u32::try_from(decimals.len()).ok()?);
    let exact = whole.parse::<u64>().ok()?;
    let fraction = (decimals.parse::<u128>().ok()? * 1000).div_ceil(scale);
    exact
        .checked_mul(1000)?
        .checked_add(u64::try_from(fraction).ok()?)
}

/// GPUs as a user writes them: whole devices, or a share of one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Gpus {
    pub(crate) devices: u16,
    pub(crate) millis: u16,
}

/// `2` devices, or `0.5` of one.
pub(crate) fn gpus(text: &str) -> Result<Gpus, String> {
    let accepted = || {
        format!(
            "accepted: 0 to {} whole GPUs, or a share of one such as 0.5 or 0.125",
            limits::GPUS
        )
    };
    let millis = thousandths(text).ok_or_else(accepted)?;
    let whole = u64::from(GPU_MILLIS);
    if millis < whole {
        return Ok(Gpus {
            devices: 0,
            millis: u16::try_from(millis).map_err(|_| accepted())?,
        });
    }
    match u16::try_from(millis / whole) {
        Ok(devices) if millis % whole == 0 && usize::from(devices) <= limits::GPUS => {
            Ok(Gpus { devices, millis: 0 })
        }
        _ => Err(accepted()),
    }
}

/// `90s`, `5m`, `1h 30m`, in milliseconds.
pub(crate) fn duration_ms(text: &str) -> Result<u64, String> {
    let duration = humantime::parse_duration(text)
        .map_err(|_| "accepted: a duration such as 500ms, 30s, 5m or 2h 30m".to_owned())?;
    u64::try_from(duration.as_millis())
        .map_err(|_| "accepted: a duration below 500 million years".to_owned())
}

/// Checks a name for so many instances.
pub(crate) fn check_instance_name(name: &str, count: u32) -> Result<(), String> {
    spec::check_instance_name(name, count).map_err(|error| format!("accepted: {}", error.accepted))
}

/// What names something: an id, the end of one, a name.
pub(crate) fn reference(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("it is empty, and names nothing".to_owned());
    }
    Ok(text.to_owned())
}

/// A submission's whole id.
pub(crate) fn submission(text: &str) -> Result<uuid::Uuid, String> {
    let id = uuid::Uuid::parse_str(text);
    id.map_err(|_| "accepted: a submission's whole id, as `show instance ID` has it".to_owned())
}

/// `022`: a umask in octal, with or without its leading zero.
pub(crate) fn umask(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    u32::from_str_radix(digits, 8)
        .ok()
        .filter(|&mask| mask <= 0o777)
        .ok_or_else(|| "accepted: a umask in octal, 000 to 777".to_owned())
}

/// A duration that is longer than none.
pub(crate) fn some_duration_ms(text: &str) -> Result<u64, String> {
    match duration_ms(text)? {
        0 => Err("accepted: a duration above zero".to_owned()),
        ms => Ok(ms),
    }
}

/// Memory of an instance, in MiB.
pub(crate) fn memory_mib(text: &str) -> Result<u32, String> {
    match size_mib(text)? {
        0..4 => Err("accepted: a size from 4M".to_owned()),
        mib => Ok(mib),
    }
}

/// `KEY=VALUE`.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("accepted: KEY=VALUE".to_owned()),
    }
}

/// `NAME=COUNT` of a named resource.
pub(crate) fn resource(text: &str) -> Result<Resource, String> {
    let (name, count) = pair(text).map_err(|_| "accepted: NAME=COUNT, such as licence=2")?;
    let count = count.parse().ok().filter(|&count| count > 0);
    count
        .map(|count| Resource { name, count })
        .ok_or_else(|| "accepted: NAME=COUNT with a whole COUNT from 1".to_owned())
}

/// Thousandths of a core, as people read them: `0.1`, `4`.
pub(crate) fn show_millis(millis: u64) -> String {
    let text = format!("{}.{:03}", millis / 1000, millis % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// MiB, as people read them: `64M`, `1.5G`.
pub(crate) fn show_mib(mib: u64) -> String {
    show_bytes(mib.saturating_mul(MIB))
}

/// Bytes, as people read them, in binary units with at most one decimal.
pub(crate) fn show_bytes(bytes: u64) -> String {
    let units = ["B", "K", "M", "G", "T", "P", "E"];
    let mut unit = 0;
    let mut tenths = u128::from(bytes) * 10;
    while tenths >= 10_240 && unit + 1 < units.len() {
        tenths = tenths.div_ceil(1024);
        unit += 1;
    }
    match tenths % 10 {
        0 => format!("{}{}", tenths / 10, units[unit]),
        tenth => format!("{}.{tenth}{}", tenths / 10, units[unit]),
    }
}

/// A span of time with two figures' worth of detail: `3ms`, `12s`, `2h 5m`, `3d 4h`.
pub(crate) fn show_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    let seconds = duration.as_secs();
    let two = |large: u64, unit: &str, small: u64, part: &str| {
        if small == 0 {
            format!("{large}{unit}")
        } else {
            format!("{large}{unit} {small}{part}")
        }
    };
    match seconds {
        0 if nanos == 0 => "0s".to_owned(),
        0 if nanos < 1_000 => format!("{nanos}ns"),
        0 if nanos < 1_000_000 => format!("{}µs", nanos / 1_000),
        0 if nanos < 10_000_000 => {
            format!("{}.{}ms", nanos / 1_000_000, nanos / 100_000 % 10)
        }
        0 => format!("{}ms", nanos / 1_000_000),
        1..=9 => format!("{}.{}s", seconds, duration.subsec_millis() / 100),
        10..=59 => format!("{seconds}s"),
        60..=3_599 => two(seconds / 60, "m", seconds % 60, "s"),
        3_600..=86_399 => two(seconds / 3_600, "h", seconds % 3_600 / 60, "m"),
        _ => two(seconds / 86_400, "d", seconds % 86_400 / 3_600, "h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_kept_in_thousandths() {
        assert_eq!(cpu_millis("0.01"), Ok(10));
        assert_eq!(cpu_millis("2"), Ok(2000));
        assert_eq!(cpu_millis("1.5"), Ok(1500));
        assert_eq!(cpu_millis("250m"), Ok(250));
        assert_eq!(cpu_millis("0.0001"), Ok(1), "a demand rounds up");
        for bad in [
            "",
            "0",
            "-1",
            "two",
            "1.",
            ".5",
            "1e3",
            "99999999999",
            "1,5",
        ] {
            assert!(cpu_millis(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_binary_and_round_up() {
        assert_eq!(size_mib("64M"), Ok(64));
        assert_eq!(size_mib("64"), Ok(64));
        assert_eq!(size_mib("1.5G"), Ok(1536));
        assert_eq!(size_mib("1GiB"), Ok(1024));
        assert_eq!(size_mib("1K"), Ok(1));
        assert_eq!(size_mib("1025K"), Ok(2));
        assert_eq!(bytes("4096"), Ok(4096));
        for bad in ["", "M", "-1M", "1X", "99999999T", "1.2.3G"] {
            assert!(size_mib(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn gpus_are_whole_or_a_share_of_one() {
        assert_eq!(
            gpus("2"),
            Ok(Gpus {
                devices: 2,
                millis: 0
            })
        );
        assert_eq!(
            gpus("0.5"),
            Ok(Gpus {
                devices: 0,
                millis: 500
            })
        );
        assert_eq!(gpus("0"), Ok(Gpus::default()));
        for bad in ["1.5", "33", "-1", "half"] {
            assert!(gpus(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_shown_can_be_read_back() {
        for mib in [1, 64, 1023, 1024, 1536, 20_480, 4_194_304] {
            assert_eq!(
                size_mib(&show_mib(mib)),
                Ok(u32::try_from(mib).unwrap()),
                "{mib}"
            );
        }
        assert_eq!(show_millis(100), "0.1");
        assert_eq!(show_millis(4000), "4");
        assert_eq!(show_bytes(0), "0B");
        assert_eq!(show_bytes(1500), "1.5K");
    }

    #[test]
    fn durations_say_what_matters() {
        assert_eq!(duration_ms("1h 30m"), Ok(5_400_000));
        assert!(duration_ms("soon").is_err());
        let shown = |ms| show_duration(Duration::from_millis(ms));
        assert_eq!(
            [
                shown(3),
                shown(250),
                shown(1_500),
                shown(12_000),
                shown(125_000),
                shown(90_000_000)
            ],
            ["3.0ms", "250ms", "1.5s", "12s", "2m 5s", "1d 1h"]
        );
    }

    #[test]
    fn pairs_and_resources_need_both_halves() {
        assert_eq!(pair("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(pair("a="), Ok(("a".into(), String::new())));
        assert!(pair("=b").is_err() && pair("a").is_err());
        assert!(resource("fpga=0").is_err() && resource("fpga=2").is_ok());
    }

    #[test]
    fn what_a_name_accepts_is_said_in_the_same_words_whatever_is_wrong() {
        let long = ["x".repeat(63), "x".repeat(56)];
        for (name, count) in [("web-1_a.B", 1), (&long[0], 1), (&long[1], 2)] {
            assert_eq!(check_instance_name(name, count), Ok(()));
        }
        let said = |name: &str, count| check_instance_name(name, count).unwrap_err();
        let words = said("", 1);
        for (name, count) in [("ü", 1), ("a/b", 1), ("dead-beef", 1), (&long[0], 2)] {
            assert_eq!(said(name, count), words, "{name}");
        }
        assert_eq!(said(&"x".repeat(64), 1), words);
        assert_eq!(said(&"x".repeat(57), 2), words);
    }
}
