//! Which table of functions to ask a runtime for.

use ratplus_graphs::releases::OLDEST_ONNX_RUNTIME;

/// Oldest API this library works with; the minor version of ONNX Runtime 1 is its API level.
pub const OLDEST_API: u32 = OLDEST_ONNX_RUNTIME.1;

/// Newest API this library makes use of: the first with in-place outputs.
pub const NEWEST_API: u32 = 18;

/// This library's version.
const LIBRARY: &str = env!("CARGO_PKG_VERSION");

/// The API level to ask a runtime for that calls itself `version`: the newest that both know.
///
/// # Errors
/// The runtime is older than [`OLDEST_API`], or its version unreadable.
pub fn api_level(version: &str) -> Result<u32, String> {
    let mut numbers = version.split('.').map(|part| {
        let digits = part
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(part.len());
        part[..digits].parse::<u32>().ok()
    });
    let (Some(Some(major)), Some(Some(minor))) = (numbers.next(), numbers.next()) else {
        return Err(format!(
            "this ONNX Runtime calls itself {version:?}, and the ratplus custom-op library {LIBRARY} \
             expects MAJOR.MINOR.PATCH, 1.{OLDEST_API} or later"
        ));
    };
    let known = match major {
        0 => 0,
        1 => minor,
        _ => NEWEST_API,
    };
    if known < OLDEST_API {
        return Err(format!(
            "this ONNX Runtime is {version}, and the ratplus custom-op library {LIBRARY} needs \
             1.{OLDEST_API} or later: upgrade onnxruntime"
        ));
    }
    Ok(known.min(NEWEST_API))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_is_the_newest_both_know() {
        for (version, level) in [
            ("1.17.0", 17),
            ("1.17.3", 17),
            ("1.18.0", 18),
            ("1.20.1", 18),
            ("1.31.1", 18),
            ("1.31.0-dev", 18),
            ("1.17rc1", 17),
            ("1.100", 18),
            ("2.0.0", 18),
        ] {
            assert_eq!(api_level(version), Ok(level), "{version}");
        }
    }

    #[test]
    fn older_runtimes_are_refused_by_both_versions() {
        for version in ["1.16.3", "1.9.0", "1.0.0", "0.5.0"] {
            let message = api_level(version).unwrap_err();
            assert!(message.contains(version), "{message}");
            assert!(message.contains("1.17"), "{message}");
        }
    }

    #[test]
    fn unreadable_versions_are_quoted() {
        for version in ["", "1", "one.two", "1.", "-1.17", "99999999999.1"] {
            let error = api_level(version).unwrap_err();
            let quoted = format!("calls itself {version:?}");
            assert!(error.contains(&quoted), "{version}: {error}");
        }
    }
}
