//! What a file is, by its first bytes. Its name decides only where they say nothing.

use super::error::Fail;
use super::source::{Source, read_vec};
use std::path::Path;

/// A file that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// An archive of `torch.save`, or one of its older files, which its reader names.
    Torch,
    Safetensors,
    ShardIndex,
}

/// Bytes that are looked at: up to a tar archive's mark.
const LOOK: u64 = 264;

/// Starts of files that are no checkpoints, what they are, and what to do.
const OTHERS: &[(&[u8], &str)] = &[
    (
        b"version https://git-lfs.github.com/spec/",
        "a Git LFS pointer, not the file it stands for; fetch that with `git lfs pull`",
    ),
    (
        b"GGUF",
        "a GGUF file; give the PyTorch or safetensors file that it was converted from",
    ),
    (b"\x1f\x8b", "a gzip file; unpack it first"),
    (b"BZh", "a bzip2 file; unpack it first"),
    (b"\xfd7zXZ\0", "an xz file; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd file; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (b"Rar!", "a rar archive; unpack it first"),
    (
        b"\x89HDF\r\n\x1a\n",
        "an HDF5 file; save the state dict with torch.save or safetensors",
    ),
    (
        b"\x93NUMPY",
        "a NumPy array; save the state dict with torch.save or safetensors",
    ),
    (
        b"%PDF",
        "a PDF document; the download was something else than the checkpoint",
    ),
];

const HTML: &str = "an HTML or XML page: a login or an error came in place of the file; download it again, signed in where that \
                    is needed, or with `hf download` or `git lfs pull`";

const DISTCP: &str = "a part of a checkpoint of torch.distributed.checkpoint; convert its directory first: `python -m \
                      torch.distributed.checkpoint.format_utils dcp_to_torch DIRECTORY model.pth`";

const ONNX: &str = "an ONNX model; give the checkpoint that it was made from";

const EXPECTED: &str =
    "expected a .pth, .safetensors or .safetensors.index.json file, or a directory that holds one";

/// The extension of a file's name, in small letters.
fn extension(name: &str) -> String {
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    extension.to_ascii_lowercase()
}

/// What `source` is; an error that names it where it is nothing that is read.
pub(super) fn kind(path: &Path, source: &dyn Source) -> Result<Kind, Fail> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let extension = extension(&name);
    let named = match extension.as_str() {
        "pth" | "pt" | "bin" | "ckpt" | "tar" => Some(Kind::Torch),
        "safetensors" => Some(Kind::Safetensors),
        "json" if name.ends_with(".index.json") => Some(Kind::ShardIndex),
        _ => None,
    };
    let unsupported = |what: &str| Err(Fail::File(what.into()));
    if source.len() == 0 {
        return unsupported("the file is empty; fetch it again");
    }
    if extension == "distcp" {
        return unsupported(DISTCP);
    }
    let head = read_vec(source, 0, source.len().min(LOOK) as usize)?;
    if let Some((_, what)) = OTHERS.iter().find(|(start, _)| head.starts_with(start)) {
        return unsupported(what);
    }
    if is_html(&head) {
        return unsupported(HTML);
    }
    if head.get(257..262) == Some(b"ustar") {
        return unsupported("a tar archive; unpack it first");
    }
    if head.starts_with(b"PK\x03\x04") {
        return match inner_checkpoint(&head) {
            Some(inner) => Err(Fail::File(format!(
                "a zip archive around `{inner}`; unpack it first"
            ))),
            None => Ok(Kind::Torch),
        };
    }
    if is_safetensors(&head, source.len()) {
        return Ok(Kind::Safetensors);
    }
    // The first field of an ONNX file is its version.
    if extension == "onnx"
        || named.is_none() && head[0] == 8 && matches!(head.get(2), Some(0x12 | 0x1a | 0x3a | 0x42))
    {
        return unsupported(ONNX);
    }
    // A pickle, which the reader of archives names.
    if head[0] == 0x80 && matches!(head.get(1), Some(2..=5)) {
        return Ok(Kind::Torch);
    }
    if named.is_none() && head[0] == b'{' {
        return unsupported(
            "a JSON file; give the checkpoint itself, or the directory that holds it",
        );
    }
    named.map_or_else(|| unsupported(EXPECTED), Ok)
}

/// A header's length and a JSON object, as far as they fit the file.
fn is_safetensors(head: &[u8], len: u64) -> bool {
    let Some((prefix, rest)) = head.split_first_chunk::<8>() else {
        return false;
    };
    let header = u64::from_le_bytes(*prefix);
    header >= 2 && header <= len - 8 && rest.first() == Some(&b'{')
}

fn is_html(head: &[u8]) -> bool {
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    let text = text.trim_ascii_start().to_ascii_lowercase();
    [b"<!doctype html".as_slice(), b"<html", b"<head", b"<?xml"]
        .iter()
        .any(|start| text.starts_with(start))
}

/// The first file of a zip archive, where its name is that of a checkpoint.
fn inner_checkpoint(head: &[u8]) -> Option<String> {
    let len = usize::from(u16::from_le_bytes([*head.get(26)?, *head.get(27)?]));
    let name = std::str::from_utf8(head.get(30..30 + len)?).ok()?;
    ["pth", "pt", "safetensors", "ckpt", "bin", "distcp"]
        .contains(&extension(name).as_str())
        .then(|| name.escape_debug().to_string())
}
