//! safetensors headers and shard indexes.

use super::super::testing::{f32_safetensors, safetensors};
use super::super::{Checkpoint, Format};
use super::{Refusal, message, values};
use serde_json::json;
use std::fs;
use std::path::Path;

fn refused(bytes: Vec<u8>) -> Refusal {
    message(Checkpoint::from_bytes("x.safetensors", bytes))
        .without(|text| problem(text, "safetensors header: "))
}

/// Without the part that is malformed and the JSON parser's place in it.
fn problem<'a>(text: &'a str, part: &str) -> &'a str {
    let text = text.strip_prefix(part).unwrap_or(text);
    text.rsplit_once(" at line ")
        .map_or(text, |(problem, _)| problem)
}

#[test]
pub(super) fn headers_that_lie() {
    let with_len = |len: u64| [len.to_le_bytes().to_vec(), vec![b'{'; 20]].concat();
    assert_eq!(
        refused(vec![1, 2]),
        "2 bytes are too few; the file was cut short"
    );
    for len in [100_000_001, u64::MAX] {
        assert_eq!(
            refused(with_len(len)),
            format!(
                "it says it has {len} bytes, expected at most 100000000; not a safetensors file, or damaged"
            )
        );
    }
    assert_eq!(
        refused(with_len(21)),
        "it says it has 21 bytes, yet the file ends after 28; the file was cut short"
    );
    assert_eq!(
        refused(with_len(0)),
        "it does not start with `{`; not a safetensors file, or damaged"
    );
    assert_eq!(
        refused(safetensors(" {}", &[])),
        "it does not start with `{`; not a safetensors file, or damaged"
    );
    let entry = |dtype: &str, shape: &str, range: &str| {
        format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{range}}}}}"#)
    };
    let cases: [(String, usize, &str); 9] = [
        (
            entry("F32", "[2]", "[0,8]"),
            7,
            "its tensors need 8 bytes after the header, found 7; the file was cut short or has data after its end",
        ),
        (
            entry("F32", "[2]", "[0,8]"),
            9,
            "its tensors need 8 bytes after the header, found 9; the file was cut short or has data after its end",
        ),
        (
            entry("F32", "[2]", "[4,12]"),
            12,
            "invalid offset for tensor `a`",
        ),
        (
            entry("F32", "[2]", "[8,0]"),
            8,
            "invalid offset for tensor `a`",
        ),
        (
            entry("F32", "[3]", "[0,8]"),
            8,
            "invalid shape, data type, or offset for tensor",
        ),
        (
            entry("F32", "[4294967296,4294967296,4294967296]", "[0,8]"),
            8,
            "overflow computing buffer size from shape and/or element type",
        ),
        (
            entry("F4", "[3]", "[0,1]"),
            1,
            "The slice is slicing for subbytes dtypes, and the slice does not end up at a byte boundary, this is invalid.",
        ),
        (
            entry("F4", "[2]", "[0,1]"),
            1,
            "tensor `a` has the unknown type F4",
        ),
        (
            entry("F32", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", "[0,4]"),
            4,
            "tensor `a` has 17 dimensions",
        ),
    ];
    for (header, data, expected) in cases {
        let found = refused(safetensors(&header, &vec![0; data]));
        assert_eq!(found, expected, "{header}");
    }
    let info = r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#;
    let twice = format!(r#"{{"a":{info},"a":{info}}}"#);
    assert_eq!(refused(safetensors(&twice, &[0; 8])), "`a` is listed twice");
    let hole = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}}"#;
    assert_eq!(
        refused(safetensors(hole, &[0; 12])),
        "invalid offset for tensor `b`"
    );
    let overlap = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
    assert_eq!(
        refused(safetensors(overlap, &[0; 12])),
        "invalid offset for tensor `b`"
    );
    for dtype in ["F33", "f32", ""] {
        let found = refused(safetensors(&entry(dtype, "[2]", "[0,8]"), &[0; 8]));
        assert_eq!(
            found.without(|text| text.split_once(", expected").map_or(text, |(head, _)| head)),
            format!("unknown variant `{dtype}`")
        );
    }
    for (header, expected) in [
        ("{", "EOF while parsing an object"),
        ("{}x", "trailing characters"),
        (
            r#"{"a":1}"#,
            "invalid type: integer `1`, expected struct TensorInfo",
        ),
        (
            r#"{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#,
            "duplicate field `dtype`",
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}"#,
            "invalid value: integer `-2`, expected usize",
        ),
    ] {
        assert_eq!(refused(safetensors(header, &[0; 8])), expected, "{header}");
    }
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(refused(safetensors(&deep, &[])), "recursion limit exceeded");
    let mut not_utf8 = safetensors(r#"{"ab":{}}"#, &[]);
    not_utf8[10] = 0xff;
    assert_eq!(refused(not_utf8), "invalid unicode code point");
}

#[test]
fn an_empty_tensor_and_metadata_are_read() {
    let header = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[0,5],"data_offsets":[0,0]},"b":{"dtype":"I64","shape":[],"data_offsets":[0,8]}}   "#;
    let checkpoint = Checkpoint::from_bytes("x.safetensors", safetensors(header, &[0; 8])).unwrap();
    assert_eq!(
        checkpoint
            .tensors()
            .map(|t| t.shape().to_vec())
            .collect::<Vec<_>>(),
        [vec![0, 5], vec![]]
    );
    assert_eq!(values(&checkpoint, 1).unwrap().len(), 1);
    assert_eq!(
        checkpoint.metadata(),
        &[("format".to_owned(), "pt".to_owned())].into()
    );
}

#[test]
fn metadata_of_shards_is_merged() {
    let directory = tempfile::tempdir().unwrap();
    let shard = |name: &str, tensor: &str, metadata: &str| {
        let header = format!(
            r#"{{"__metadata__":{metadata},"{tensor}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}"#
        );
        write(&directory.path().join(name), safetensors(&header, &[0; 4]));
    };
    shard("s1.safetensors", "a", r#"{"format":"pt","b":"a"}"#);
    shard("s2.safetensors", "c", r#"{"format":"np","d":"c"}"#);
    write(
        &directory.path().join(INDEX),
        index(&[("a", "s1.safetensors"), ("c", "s2.safetensors")]),
    );
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    let expected = [("b", "a"), ("d", "c"), ("format", "pt")];
    let found = checkpoint.metadata().iter();
    assert!(
        found
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .eq(expected)
    );
}

pub(super) fn write(path: &Path, bytes: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn index(map: &[(&str, &str)]) -> String {
    json!({"metadata": {"total_size": 1}, "weight_map": map.iter().cloned().collect::<std::collections::BTreeMap<_, _>>()})
        .to_string()
}

pub(super) const INDEX: &str = "model.safetensors.index.json";

fn two_shards(directory: &Path) {
    write(
        &directory.join("s1.safetensors"),
        f32_safetensors(&[("a", &[4, 5]), ("b", &[3])]),
    );
    write(
        &directory.join("s2.safetensors"),
        f32_safetensors(&[("c", &[2, 2])]),
    );
}

#[test]
fn shards_are_read_through_their_index_and_through_a_hub_cache() {
    let directory = tempfile::tempdir().unwrap();
    let (blobs, snapshot) = (
        directory.path().join("blobs"),
        directory.path().join("snapshots/main"),
    );
    fs::create_dir_all(&snapshot).unwrap();
    two_shards(&blobs);
    write(
        &blobs.join("i"),
        index(&[
            ("a", "s1.safetensors"),
            ("b", "s1.safetensors"),
            ("c", "s2.safetensors"),
        ]),
    );
    for (name, blob) in [
        ("s1.safetensors", "s1.safetensors"),
        ("s2.safetensors", "s2.safetensors"),
        (INDEX, "i"),
    ] {
        std::os::unix::fs::symlink(Path::new("../../blobs").join(blob), snapshot.join(name))
            .unwrap();
    }
    for path in [snapshot.join(INDEX), snapshot.clone()] {
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(
            (checkpoint.format(), checkpoint.path()),
            (Format::ShardedSafetensors, path.as_path())
        );
        assert_eq!(values(&checkpoint, 1).unwrap().len(), 3);
        let c = checkpoint.tensor("c").unwrap();
        assert_eq!(checkpoint.file_of(c), snapshot.join("s2.safetensors"));
    }
}

#[test]
pub(super) fn indexes_that_lie() {
    let directory = tempfile::tempdir().unwrap();
    two_shards(directory.path());
    let path = directory.path().join(INDEX);
    let refused = |map: &[(&str, &str)]| {
        write(&path, index(map));
        message(Checkpoint::open(&path)).without(|text| problem(text, "shard index: "))
    };
    let (s1, s2) = ("s1.safetensors", "s2.safetensors");
    for name in [
        "../s1.safetensors",
        "/etc/passwd",
        "a/b",
        "..",
        ".",
        "",
        "a\\b",
    ] {
        assert_eq!(
            refused(&[("a", name)]),
            format!(
                "`{}` is not a bare file name; shards lie beside the index",
                name.escape_debug()
            )
        );
    }
    assert_eq!(
        refused(&[("a", s1), ("b", s1), ("z", "s3.safetensors")]),
        "\n  shard `s3.safetensors` is missing"
    );
    assert_eq!(
        refused(&[("a", s1), ("b", s2), ("c", s2)]),
        "\n  tensor `b`: expected in `s2.safetensors`, found in `s1.safetensors`"
    );
    assert_eq!(
        refused(&[("a", s1), ("c", s2)]),
        "\n  tensor `b` in `s1.safetensors` is not listed"
    );
    assert_eq!(
        refused(&[("a", s1), ("b", s1), ("c", s2), ("d", s2)]),
        "\n  tensor `d`: expected in `s2.safetensors`, found nowhere"
    );
    assert_eq!(refused(&[]), "it lists no tensors");
    write(
        &directory.path().join(s2),
        f32_safetensors(&[("b", &[3]), ("c", &[2, 2])]),
    );
    assert_eq!(
        refused(&[("a", s1), ("b", s1), ("c", s2)]),
        "\n  tensor `b`: expected in `s1.safetensors`, found in `s2.safetensors`"
    );
    for (text, expected) in [
        (" ", "EOF while parsing a value"),
        (
            "[]",
            "invalid length 0, expected struct RawIndex with 1 element",
        ),
        ("{}", "missing field `weight_map`"),
        (r#"{"weight_map":{"a":"s","a":"s"}}"#, "`a` is listed twice"),
        (
            r#"{"weight_map":{"a":3}}"#,
            "invalid type: integer `3`, expected a string",
        ),
    ] {
        write(&path, text);
        let found = message(Checkpoint::open(&path));
        let found = found.without(|text| problem(text, "shard index: "));
        assert_eq!(found, expected, "{text}");
    }
}

#[test]
fn a_file_that_shrinks_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    write(&path, f32_safetensors(&[("a", &[4096])]));
    let checkpoint = Checkpoint::open(&path).unwrap();
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(500)
        .unwrap();
    let text = values(&checkpoint, 4096).unwrap_err().to_string();
    assert!(text.contains("cannot read: "), "{text}");
}
