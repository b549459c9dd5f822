//! What files and directories are, whatever their names.

use super::super::testing::{
    View, ZipEnd, ZipRecord, f32_safetensors, pth, safetensors, state_pickle, zip,
};
use super::super::{Checkpoint, Format};
use super::shards::{INDEX, write};
use super::{f32s, message};

#[test]
pub(super) fn directories_hold_one_checkpoint() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    assert_eq!(
        message(Checkpoint::open(path)),
        "the directory holds no model.safetensors, *.safetensors.index.json or *.pth, nor one *.safetensors, *.bin, *.pt \
         or *.ckpt"
    );
    write(
        &path.join("golden.safetensors"),
        f32_safetensors(&[("g", &[1])]),
    );
    write(
        &path.join("model.safetensors"),
        f32_safetensors(&[("a", &[1])]),
    );
    assert_eq!(
        Checkpoint::open(path)
            .unwrap()
            .tensors()
            .next()
            .unwrap()
            .name(),
        "a"
    );
    write(&path.join("475.pth"), "x");
    assert_eq!(
        message(Checkpoint::open(path)),
        "the directory holds several checkpoints; give one of 475.pth, model.safetensors"
    );
}

#[test]
pub(super) fn paths_that_are_no_checkpoints() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("none.pth");
    assert_eq!(
        message(Checkpoint::open(&missing)),
        "cannot open: No such file or directory (os error 2)"
    );
    let other = directory.path().join("model.txt");
    write(&other, "weights");
    assert_eq!(
        message(Checkpoint::open(&other)),
        "expected a .pth, .safetensors or .safetensors.index.json file, or a directory that holds one"
    );
    assert_eq!(message(Checkpoint::open("/dev/zero")), "not a regular file");
    assert_eq!(
        message(Checkpoint::from_bytes(INDEX, b"{}".to_vec())),
        "shards are files beside their index"
    );
}

fn archive() -> Vec<u8> {
    let pickle = state_pickle(&[("w", View::contiguous("FloatStorage", "0", &[6]))]);
    pth(pickle, &[("0", f32s((0..6).map(|i| i as f32)))])
}

#[test]
fn a_file_is_what_it_holds() {
    let directory = tempfile::tempdir().unwrap();
    for name in [
        "model.pth",
        "noext",
        "model.pth.tar",
        "MODEL.PTH",
        "consolidated.00.pth",
        "model.ckpt",
        "model.safetensors",
        "model.json",
        "model.onnx.bak",
    ] {
        for (bytes, format) in [
            (archive(), Format::Torch),
            (f32_safetensors(&[("w", &[2])]), Format::Safetensors),
        ] {
            let path = directory.path().join(name);
            write(&path, &bytes);
            assert_eq!(Checkpoint::open(&path).unwrap().format(), format, "{name}");
            if !name.ends_with(".json") {
                assert_eq!(
                    Checkpoint::from_bytes(name, bytes).unwrap().format(),
                    format
                );
            }
        }
    }
}

#[test]
pub(super) fn files_of_other_kinds_are_named() {
    let tar = [vec![b'a'; 257], b"ustar\0".to_vec(), vec![0; 300]].concat();
    let nested = zip(
        &[ZipRecord::new("run/model.pth", *b"x")],
        &ZipEnd::default(),
    );
    let page = "an HTML or XML page: a login or an error came in place of the file; download it again, signed in where \
                that is needed, or with `hf download` or `git lfs pull`";
    for (bytes, expected) in [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 5\n".to_vec(),
            "a Git LFS pointer, not the file it stands for; fetch that with `git lfs pull`",
        ),
        (b"\n <!DOCTYPE HTML><title>Sign in</title>".to_vec(), page),
        (b"\xef\xbb\xbf<html lang=en>".to_vec(), page),
        (
            b"<?xml version=\"1.0\"?><Error><Code>AccessDenied".to_vec(),
            page,
        ),
        (vec![], "the file is empty; fetch it again"),
        (b"\x1f\x8b\x08\0".to_vec(), "a gzip file; unpack it first"),
        (b"\xfd7zXZ\0\0".to_vec(), "an xz file; unpack it first"),
        (
            b"\x28\xb5\x2f\xfd\0".to_vec(),
            "a zstd file; unpack it first",
        ),
        (tar, "a tar archive; unpack it first"),
        (
            nested,
            "a zip archive around `run/model.pth`; unpack it first",
        ),
        (
            b"GGUF\x03\0\0\0".to_vec(),
            "a GGUF file; give the PyTorch or safetensors file that it was converted from",
        ),
        (
            b"\x89HDF\r\n\x1a\n\0".to_vec(),
            "an HDF5 file; save the state dict with torch.save or safetensors",
        ),
    ] {
        for name in ["x.pth", "x.safetensors", "x.bin"] {
            assert_eq!(
                message(Checkpoint::from_bytes(name, bytes.clone())),
                expected,
                "{name}"
            );
        }
    }
    let onnx = b"\x08\x09\x12\x07pytorch".to_vec();
    for name in ["x.onnx", "x.model"] {
        assert_eq!(
            message(Checkpoint::from_bytes(name, onnx.clone())),
            "an ONNX model; give the checkpoint that it was made from"
        );
    }
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("config.json");
    write(&json, "{\"model_type\": \"ratplus\"}");
    assert_eq!(
        message(Checkpoint::open(&json)),
        "a JSON file; give the checkpoint itself, or the directory that holds it"
    );
    let part = directory.path().join("__0_0.distcp");
    write(&part, archive());
    assert!(message(Checkpoint::open(&part)).contains("dcp_to_torch DIRECTORY model.pth`"));
    // A shard that was not fetched.
    write(
        &directory.path().join(INDEX),
        r#"{"weight_map":{"a":"s1.safetensors"}}"#,
    );
    write(
        &directory.path().join("s1.safetensors"),
        "version https://git-lfs.github.com/spec/v1\n",
    );
    assert!(
        message(Checkpoint::open(directory.path().join(INDEX))).starts_with("a Git LFS pointer")
    );
}

#[test]
pub(super) fn directories_are_searched() {
    let opens = |files: &[(&str, &[u8])]| {
        let directory = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            write(&directory.path().join(name), bytes);
        }
        Checkpoint::open(directory.path()).map(|checkpoint| checkpoint.format())
    };
    let refused = |files: &[&str]| {
        let directory = tempfile::tempdir().unwrap();
        for name in files {
            write(&directory.path().join(name), "x");
        }
        let path = directory.path().display().to_string();
        message(Checkpoint::open(directory.path()))
            .to_string()
            .replace(&path, "DIR")
    };
    let (pth, tensors) = (archive(), f32_safetensors(&[("w", &[2])]));
    let other = safetensors("{}", &[]);
    for (files, format) in [
        (vec![("pytorch_model.bin", &pth)], Format::Torch),
        (
            vec![("pytorch_model.bin", &pth), ("config.json", &other)],
            Format::Torch,
        ),
        (
            vec![
                ("pytorch_model.bin", &pth),
                ("training_args.bin", &other),
                ("optimizer.pt", &other),
            ],
            Format::Torch,
        ),
        (
            vec![("pytorch_model.bin", &pth), ("model.safetensors", &tensors)],
            Format::Safetensors,
        ),
        (vec![("rat-1b.safetensors", &tensors)], Format::Safetensors),
        (
            vec![
                ("rat-1b.safetensors", &tensors),
                ("golden.safetensors", &other),
            ],
            Format::Safetensors,
        ),
        (vec![("last.ckpt", &pth)], Format::Torch),
        (vec![("475.pt", &pth)], Format::Torch),
        (
            vec![("475.PTH", &pth), ("rng_state_0.pth", &other)],
            Format::Torch,
        ),
        (vec![("475.pth.tar", &pth)], Format::Torch),
    ] {
        let files: Vec<_> = files
            .iter()
            .map(|(name, bytes)| (*name, bytes.as_slice()))
            .collect();
        assert_eq!(opens(&files).unwrap(), format);
    }
    assert_eq!(
        refused(&["a.safetensors", "b.safetensors"]),
        "the directory holds several checkpoints; give one of a.safetensors, b.safetensors"
    );
    assert_eq!(
        refused(&["1.pt", "2.ckpt", "optimizer.pt"]),
        "the directory holds several checkpoints; give one of 1.pt, 2.ckpt"
    );
    assert_eq!(
        refused(&[".metadata", "__0_0.distcp", "__1_0.distcp"]),
        "a checkpoint of torch.distributed.checkpoint (.distcp files): convert it to one file with `python -m \
         torch.distributed.checkpoint.format_utils dcp_to_torch DIR model.pth` (in Python, dcp_to_torch_save) and give \
         that"
    );
    assert_eq!(
        refused(&[
            "pytorch_model.bin.index.json",
            "pytorch_model-00001-of-00002.bin"
        ]),
        "shards of PyTorch files (pytorch_model.bin.index.json): load the model and save its state dict as one file, or \
         as safetensors"
    );
    assert_eq!(
        refused(&["manifest.json", "weights.bin", "decode.onnx"]),
        "a package that `ratplus export` wrote; give the checkpoint that it was made from"
    );
}
