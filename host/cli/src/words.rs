//! Figures and moments for people.

use jiff::tz::TimeZone;
use snapslot_slot::Moment;

/// "3.2 GiB".
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match (unit, value < 10.0) {
        (0, _) => format!("{n} B"),
        (_, true) => format!("{value:.1} {}", UNITS[unit]),
        (_, false) => format!("{value:.0} {}", UNITS[unit]),
    }
}

fn stamp(moment: Moment) -> Option<jiff::Timestamp> {
    let nanoseconds = i32::try_from(moment.nanoseconds.min(999_999_999)).ok()?;
    jiff::Timestamp::new(moment.seconds, nanoseconds).ok()
}

/// Local time, to the second.
pub fn moment(moment: Moment) -> String {
    stamp(moment).map_or_else(
        || format!("{} s after 1970", moment.seconds),
        |t| t.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S %Z").to_string(),
    )
}

/// "2 hours ago".
pub fn ago(moment: Moment) -> String {
    let Some(then) = stamp(moment) else { return String::new() };
    let seconds = jiff::Timestamp::now().as_second() - then.as_second();
    let (n, unit) = match seconds {
        ..0 => return "in the future, by this host's clock".to_owned(),
        0..60 => return "just now".to_owned(),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{n} {unit}{} ago", if n == 1 { "" } else { "s" })
}

/// "4.2 ms".
pub fn microseconds(n: u64) -> String {
    match n {
        ..1_000 => format!("{n} µs"),
        1_000..10_000 => format!("{:.1} ms", n as f64 / 1e3),
        10_000..1_000_000 => format!("{} ms", n / 1000),
        _ => format!("{:.1} s", n as f64 / 1e6),
    }
}

/// A name as a shell would take it.
pub fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:+@%=,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(u64::MAX), "16384 PiB");
        assert_eq!(quoted("a b'c"), "'a b'\\''c'");
        assert_eq!(
            moment(Moment { seconds: i64::MAX, nanoseconds: 0 }),
            format!("{} s after 1970", i64::MAX)
        );
    }
}
