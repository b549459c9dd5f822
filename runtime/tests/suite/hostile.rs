//! Hostile packages and inputs: what each is told, whole.

use crate::common::{
    MAX_SEQ_LEN, Options, VOCAB, backends, fixture, info, open, write_manifest, write_package,
};
use prost::Message;
use ratplus_graphs::onnx::{AttributeProto, ModelProto, TensorProto};
use ratplus_graphs::ops::{ElementType, TensorType};
use ratplus_graphs::package::{Fallback, WEIGHTS_FILE};
use ratplus_runtime::package::{Package, PackageError};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

/// What is wrong, how it is made, and the one line about it. `NAME`, `OFFSET` and `LENGTH` stand
/// for those of the initializer.
type Graph = (&'static str, fn(&mut ModelProto), &'static str);

const EXTERNAL: &str =
    "initializer `NAME`: expected location, offset and length in weights.bin and nothing else";

const GRAPHS: &[Graph] = &[
    (
        "parent folder",
        |m| set(m, "location", "../weights.bin"),
        "initializer `NAME`: expected external data with location `weights.bin`, found Some(\"../weights.bin\")",
    ),
    (
        "nested parent",
        |m| set(m, "location", "a/b/../../weights.bin"),
        "initializer `NAME`: expected external data with location `weights.bin`, found Some(\"a/b/../../weights.bin\")",
    ),
    (
        "absolute",
        |m| set(m, "location", "/etc/passwd"),
        "initializer `NAME`: expected external data with location `weights.bin`, found Some(\"/etc/passwd\")",
    ),
    (
        "this process",
        |m| set(m, "location", "/proc/self/mem"),
        "initializer `NAME`: expected external data with location `weights.bin`, found Some(\"/proc/self/mem\")",
    ),
    (
        "an address in memory",
        |m| set(m, "location", "*/_ORT_MEM_ADDR_/*"),
        "initializer `NAME`: expected external data with location `weights.bin`, found Some(\"*/_ORT_MEM_ADDR_/*\")",
    ),
    (
        "the folder itself",
        |m| set(m, "location", "./weights.bin"),
        "initializer `NAME`: expected external data with location `weights.bin`, found Some(\"./weights.bin\")",
    ),
    (
        "a zero in the name",
        |m| set(m, "location", "weights.bin\0"),
        "initializer `NAME`: expected external data with location `weights.bin`, found Some(\"weights.bin\\0\")",
    ),
    (
        "another file of the package",
        |m| set(m, "location", "manifest.json"),
        "initializer `NAME`: expected external data with location `weights.bin`, found Some(\"manifest.json\")",
    ),
    (
        "a file that is missing",
        |m| set(m, "location", "none.bin"),
        "initializer `NAME`: expected external data with location `weights.bin`, found Some(\"none.bin\")",
    ),
    (
        "no name",
        |m| set(m, "location", ""),
        "initializer `NAME`: expected external data with location `weights.bin`, found Some(\"\")",
    ),
    (
        "a negative offset",
        |m| set(m, "offset", "-4096"),
        "initializer `NAME`: expected external data with offset `OFFSET`, found Some(\"-4096\")",
    ),
    (
        "an offset beyond 64 bits",
        |m| set(m, "offset", "18446744073709551616"),
        "initializer `NAME`: expected external data with offset `OFFSET`, found Some(\"18446744073709551616\")",
    ),
    (
        "an offset that wraps",
        |m| set(m, "offset", "18446744073709551615"),
        "initializer `NAME`: expected external data with offset `OFFSET`, found Some(\"18446744073709551615\")",
    ),
    (
        "another tensor's offset",
        |m| set(m, "offset", "0"),
        "initializer `NAME`: expected external data with offset `OFFSET`, found Some(\"0\")",
    ),
    (
        "a length shorter than the shape",
        |m| set(m, "length", "4"),
        "initializer `NAME`: expected external data with length `LENGTH`, found Some(\"4\")",
    ),
    (
        "a length longer than the file",
        |m| set(m, "length", "18446744073709551615"),
        "initializer `NAME`: expected external data with length `LENGTH`, found Some(\"18446744073709551615\")",
    ),
    (
        "bytes besides",
        |m| initializer(m).raw_data = Some(vec![0; 4]),
        EXTERNAL,
    ),
    (
        "said to be inside",
        |m| initializer(m).data_location = 0,
        EXTERNAL,
    ),
    (
        "a location twice",
        |m| {
            let tensor = initializer(m);
            tensor.external_data.push(tensor.external_data[0].clone());
        },
        EXTERNAL,
    ),
    (
        "a name that no weight has",
        |m| {
            let graph = m.graph.as_mut().unwrap();
            let mut extra = graph.initializer[3].clone();
            extra.name = "other".into();
            graph.initializer.push(extra);
        },
        "initializer `other`: unknown, or there twice",
    ),
    (
        "a weight twice",
        |m| {
            let graph = m.graph.as_mut().unwrap();
            graph.initializer.push(graph.initializer[3].clone());
        },
        "initializer `NAME`: unknown, or there twice",
    ),
    (
        "a constant from a file",
        |m| {
            let node = &mut m.graph.as_mut().unwrap().node[0];
            node.name = "reader".into();
            node.attribute.push(from_file());
        },
        "node `reader`: attribute `value` refers to a file; only weights may",
    ),
    (
        "a constant from a file, in a function",
        |m| {
            let node = &mut m.functions[0].node[0];
            node.name = "reader".into();
            node.attribute.push(from_file());
        },
        "node `reader`: attribute `value` refers to a file; only weights may",
    ),
    (
        "an operator of strangers",
        |m| {
            let node = &mut m.graph.as_mut().unwrap().node[0];
            (node.name, node.domain, node.op_type) =
                ("x".into(), "com.example".into(), "Run".into());
        },
        "node `x`: operator `com.example.Run` is not one a package may use here",
    ),
    (
        "an operator of strangers, in a function",
        |m| {
            let node = &mut m.functions[0].node[0];
            (node.name, node.domain, node.op_type) =
                ("x".into(), "ai.ratplus".into(), "Run".into());
        },
        "node `x`: operator `ai.ratplus.Run` is not one a package may use here",
    ),
    (
        "a function of strangers",
        |m| m.functions[0].domain = "com.example".into(),
        "function `com.example.RecurrenceScan`: not one of this package's operators",
    ),
    (
        "no graph",
        |m| m.graph = None,
        "expected a graph, found none",
    ),
    (
        "another version",
        |m| m.ir_version = 3,
        "ir_version: expected 9 as in the manifest, found 3",
    ),
];

fn initializer(model: &mut ModelProto) -> &mut TensorProto {
    &mut model.graph.as_mut().unwrap().initializer[3]
}

fn set(model: &mut ModelProto, key: &str, value: &str) {
    let entries = &mut initializer(model).external_data;
    entries
        .iter_mut()
        .find(|entry| entry.key == key)
        .unwrap()
        .value = value.into();
}

fn from_file() -> AttributeProto {
    let one = TensorType::new(ElementType::F32, [1]);
    AttributeProto::tensor("value", TensorProto::external("c", &one, "/etc/passwd", 0))
}

pub fn refused(dir: &Path) -> PackageError {
    Package::open(dir).expect_err("the package is refused")
}

#[test]
fn hostile_graphs_are_told_whole() {
    let dir = tempfile::tempdir().unwrap();
    let mut manifest = write_package(dir.path(), Options::default(), 1);
    let mut told = 0;
    for file in manifest.engines[1].files.clone().into_values() {
        let path = dir.path().join(&file);
        let good = fs::read(&path).unwrap();
        for &(name, change, expected) in GRAPHS {
            let mut model = ModelProto::decode(&good[..]).unwrap();
            if model.functions.is_empty() && name.contains("function") {
                continue;
            }
            let tensor = initializer(&mut model).clone();
            change(&mut model);
            let bytes = model.encode_to_vec();
            // The checksum is right: only the guard can object.
            manifest.files.insert(file.clone(), info(&bytes));
            fs::write(&path, bytes).unwrap();
            write_manifest(dir.path(), &manifest);
            let expected = expected
                .replace("NAME", &tensor.name)
                .replace("OFFSET", tensor.external_entry("offset").unwrap())
                .replace("LENGTH", tensor.external_entry("length").unwrap());
            assert_eq!(
                refused(dir.path()).problems,
                [format!("{file}: {expected}")],
                "{name}"
            );
            told += 1;
        }
        manifest.files.insert(file.clone(), info(&good));
        fs::write(&path, good).unwrap();
    }
    println!("hostile graphs: {told}");
    assert!(told >= 4 * 16);
}

/// What is wrong, how it is made in place of the weights (`weights`; `outside` is elsewhere and
/// holds the right ones), and what is said.
type Place = (
    &'static str,
    fn(weights: &Path, outside: &Path),
    &'static str,
);

const PLACES: &[Place] = &[
    (
        "a link out",
        |weights, outside| symlink(outside, weights).unwrap(),
        "weights.bin: leads out of the package to `OUTSIDE`; put the file into the folder",
    ),
    (
        "a link to a link out",
        |weights, outside| {
            let inner = weights.with_file_name("inner");
            symlink(outside, &inner).unwrap();
            symlink("inner", weights).unwrap();
        },
        "weights.bin: leads out of the package to `OUTSIDE`; put the file into the folder",
    ),
    (
        "through a linked folder",
        |weights, outside| {
            let inner = weights.with_file_name("inner");
            symlink(outside.parent().unwrap(), &inner).unwrap();
            symlink(
                Path::new("inner").join(outside.file_name().unwrap()),
                weights,
            )
            .unwrap();
        },
        "weights.bin: leads out of the package to `OUTSIDE`; put the file into the folder",
    ),
    (
        "up and away",
        |weights, _| symlink("../../../../../../../../etc/passwd", weights).unwrap(),
        "weights.bin: leads out of the package to `/etc/passwd`; put the file into the folder",
    ),
    (
        "a device",
        |weights, _| symlink("/dev/zero", weights).unwrap(),
        "weights.bin: leads out of the package to `/dev/zero`; put the file into the folder",
    ),
    (
        "a link to itself",
        |weights, _| symlink("weights.bin", weights).unwrap(),
        "weights.bin: Too many levels of symbolic links (os error 40); copy or export the package again",
    ),
    (
        "a link to nothing",
        |weights, _| symlink("none", weights).unwrap(),
        "weights.bin: No such file or directory (os error 2); copy or export the package again",
    ),
    (
        "nothing",
        |_, _| (),
        "weights.bin: No such file or directory (os error 2); copy or export the package again",
    ),
    (
        "a folder",
        |weights, _| fs::create_dir(weights).unwrap(),
        "weights.bin: expected a regular file; copy or export the package again",
    ),
    (
        "a pipe",
        |weights, _| {
            let made = std::process::Command::new("mkfifo")
                .arg(weights)
                .status()
                .unwrap();
            assert!(made.success());
        },
        "weights.bin: expected a regular file; copy or export the package again",
    ),
    (
        "a socket",
        |weights, _| drop(std::os::unix::net::UnixListener::bind(weights).unwrap()),
        "weights.bin: expected a regular file; copy or export the package again",
    ),
    (
        "a hard link to another file",
        |weights, outside| {
            let other = outside.with_file_name("other");
            fs::write(&other, "short").unwrap();
            fs::hard_link(other, weights).unwrap();
        },
        "weights.bin: expected SIZE bytes, found 5; copy or export the package again",
    ),
];

#[test]
fn hostile_places_are_told_whole() {
    for &(name, make, expected) in PLACES {
        let dir = tempfile::tempdir().unwrap();
        // On the same file system, for hard links.
        let elsewhere = tempfile::tempdir().unwrap();
        let manifest = write_package(dir.path(), Options::default(), 1);
        let weights = dir.path().join(WEIGHTS_FILE);
        let outside = elsewhere.path().canonicalize().unwrap().join("w");
        fs::rename(&weights, &outside).unwrap();
        make(&weights, &outside);
        let expected = expected
            .replace("OUTSIDE", &outside.display().to_string())
            .replace("SIZE", &manifest.files[WEIGHTS_FILE].bytes.to_string());
        assert_eq!(refused(dir.path()).problems, [expected], "{name}");
    }
    println!("hostile places of weights: {}", PLACES.len());
    assert!(PLACES.len() >= 10);
}

/// Engine, tokens, lengths, and all that is said; the session has two slots of four tokens each.
type Input = (
    usize,
    &'static [i64],
    &'static [i64],
    &'static [&'static str],
);

const IDS: &[i64] = &[1, 2, 3, 4, 5, 6, 7, 8];
const LENGTHS: &[i64] = &[4, 4];

const INPUTS: &[Input] = &[
    (
        4,
        &[-1, 2, 3, 4, 5, 6, 7, 8],
        LENGTHS,
        &["slot 0: token 0 of the chunk is -1, expected 0 to 60"],
    ),
    (
        4,
        &[1, 2, 3, 4, 5, 6, 7, 61],
        LENGTHS,
        &["slot 1: token 3 of the chunk is 61, expected 0 to 60"],
    ),
    (
        4,
        &[1, 2, 3, 4, -61, 6, 7, 8],
        LENGTHS,
        &["slot 1: token 0 of the chunk is -61, expected 0 to 60"],
    ),
    (
        4,
        &[1, 2147483647, 3, 4, 5, 6, 7, 8],
        LENGTHS,
        &["slot 0: token 1 of the chunk is 2147483647, expected 0 to 60"],
    ),
    (
        4,
        &[1, 2147483648, 3, 4, 5, 6, 7, 8],
        LENGTHS,
        &["slot 0: token 1 of the chunk is 2147483648, expected 0 to 60"],
    ),
    (
        4,
        &[1, 4294967296, 3, 4, 5, 6, 7, 8],
        LENGTHS,
        &["slot 0: token 1 of the chunk is 4294967296, expected 0 to 60"],
    ),
    (
        4,
        &[1, 2, i64::MAX, 4, 5, 6, 7, 8],
        LENGTHS,
        &["slot 0: token 2 of the chunk is 9223372036854775807, expected 0 to 60"],
    ),
    (
        4,
        &[1, 2, i64::MIN, 4, 5, 6, 7, 8],
        LENGTHS,
        &["slot 0: token 2 of the chunk is -9223372036854775808, expected 0 to 60"],
    ),
    (
        4,
        &[99, 2, 3, 4, 5, 6, 7, 99],
        LENGTHS,
        &[
            "slot 0: token 0 of the chunk is 99, expected 0 to 60",
            "slot 1: token 3 of the chunk is 99, expected 0 to 60",
        ],
    ),
    (
        4,
        &[1, 2, 3, 99, 5, 6, 7, 8],
        &[3, 4],
        &["slot 0: token 3 of the chunk is 99, expected 0 to 60"],
    ),
    (
        5,
        &[1; 10],
        LENGTHS,
        &["engine length: expected one of [1, 4, 16], found 5"],
    ),
    (
        0,
        &[],
        &[0, 0],
        &["engine length: expected one of [1, 4, 16], found 0"],
    ),
    (
        usize::MAX,
        IDS,
        LENGTHS,
        &[
            "engine length: expected one of [1, 4, 16], found 18446744073709551615",
            "input_ids: expected 18446744073709551615 values, found 8",
        ],
    ),
    (
        4,
        &[1, 2, 3, 4, 5, 6, 7],
        LENGTHS,
        &["input_ids: expected 8 values, found 7"],
    ),
    (4, &[], LENGTHS, &["input_ids: expected 8 values, found 0"]),
    (4, IDS, &[4], &["seq_length: expected 2 values, found 1"]),
    (
        4,
        IDS,
        &[4, 4, 4],
        &["seq_length: expected 2 values, found 3"],
    ),
    (
        4,
        IDS,
        &[0, 0],
        &["seq_length: expected at least one slot with 1 token or more, found none"],
    ),
    (
        4,
        IDS,
        &[5, 4],
        &["slot 0: past_length 0 and seq_length 5 do not fit: LENGTHS"],
    ),
    (
        4,
        IDS,
        &[4, -1],
        &["slot 1: past_length 0 and seq_length -1 do not fit: LENGTHS"],
    ),
    (
        4,
        IDS,
        &[4, i64::MAX],
        &["slot 1: past_length 0 and seq_length 9223372036854775807 do not fit: LENGTHS"],
    ),
    (
        4,
        IDS,
        &[i64::MIN, 4],
        &["slot 0: past_length 0 and seq_length -9223372036854775808 do not fit: LENGTHS"],
    ),
    (
        4,
        &[1, 2, 3, 4, 5, 6, 7, 77],
        &[4, 6],
        &[
            "slot 1: token 3 of the chunk is 77, expected 0 to 60",
            "slot 1: past_length 0 and seq_length 6 do not fit: LENGTHS",
        ],
    ),
];

#[test]
fn hostile_inputs_are_told_whole() {
    assert_eq!((VOCAB, MAX_SEQ_LEN), (61, 48));
    let rule = "seq_length must be 0 to 4, and past_length 0 or more with their sum at most 48";
    let fixture = fixture(Options::default());
    for kind in backends(Fallback::Function) {
        let mut session = open(&fixture, kind);
        for (engine, ids, lengths, expected) in INPUTS {
            let error = session.run(*engine, ids, lengths).map(|_| ()).unwrap_err();
            let expected = expected.join("\n  ").replace("LENGTHS", rule);
            assert_eq!(
                error.to_string(),
                format!("the step was refused before the run:\n  {expected}"),
                "{kind}"
            );
            assert_eq!((session.past_length(0), session.past_length(1)), (0, 0));
        }
        session.run(4, IDS, LENGTHS).unwrap();
    }
    println!("hostile inputs: {}", INPUTS.len());
    assert!(INPUTS.len() >= 20);
}
