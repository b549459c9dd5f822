//! What a library of RAT+ operators says of itself.

use super::dylib;
use std::ffi::c_char;
use std::path::Path;

/// Bytes of a description at most; ours have a few thousand.
const MAX_BYTES: usize = 1 << 20;

type Describe = unsafe extern "C" fn(*mut c_char, usize) -> usize;

/// The JSON object that `RatplusDescribe` of the library writes.
pub(crate) fn describe(library: &Path) -> Result<String, String> {
    let named = |problem: &str| format!("{}: {problem}", library.display());
    let file = library
        .canonicalize()
        .map_err(|error| named(&error.to_string()))?;
    let loaded = dylib::open(&file)?;
    // SAFETY: the function has had this signature since there is one of its name, and the library is never
    // unloaded.
    let describe = unsafe { loaded.get::<Describe>("RatplusDescribe") }.map_err(|_| {
        named("it exports no RatplusDescribe: it is no library of RAT+ operators, or an older one")
    })?;
    // SAFETY: null for no room asks for the length.
    let length = unsafe { describe(std::ptr::null_mut(), 0) };
    if !(1..=MAX_BYTES).contains(&length) {
        return Err(named(&format!(
            "expected a description of 1 to {MAX_BYTES} bytes, found {length}: it is a defect of the library; \
             build or install it again"
        )));
    }
    let mut text = vec![0u8; length + 1];
    // SAFETY: as many bytes are writable.
    unsafe { describe(text.as_mut_ptr().cast(), text.len()) };
    text.truncate(length);
    String::from_utf8(text)
        .map_err(|error| named(&format!("expected a description in UTF-8: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// A library whose description is the C expression `text`, of so many bytes by its own words.
    fn library(dir: &Path, name: &str, text: &str, length: &str) -> std::path::PathBuf {
        let (source, library) = (
            dir.join(format!("{name}.c")),
            dir.join(format!("{name}.so")),
        );
        let code = format!(
            "#include <string.h>\nsize_t RatplusDescribe(char *text, size_t capacity) {{\n\
             if (text) strncpy(text, {text}, capacity);\nreturn {length};\n}}\n"
        );
        std::fs::write(&source, code).unwrap();
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-o"]).arg(&library);
        assert!(compiler.arg(&source).status().unwrap().success());
        library
    }

    #[test]
    fn a_description_has_bounds() {
        let dir = tempfile::tempdir().unwrap();
        let good = library(dir.path(), "good", "\"{}\"", "2");
        assert_eq!(describe(&good), Ok("{}".to_owned()));
        for (name, text, length, expected) in [
            ("none", "\"\"", "0", "found 0"),
            ("long", "\"{}\"", "(size_t)-1", "found 18446744073709551615"),
            ("large", "\"{}\"", "((size_t)1 << 20) + 1", "found 1048577"),
            ("bytes", "\"\\xff\"", "1", "in UTF-8"),
        ] {
            let error = describe(&library(dir.path(), name, text, length)).unwrap_err();
            assert!(error.contains(expected), "{error}");
            assert!(error.contains(&format!("{name}.so: ")), "{error}");
        }
    }
}
