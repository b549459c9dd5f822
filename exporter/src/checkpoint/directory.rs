//! The checkpoint in a directory.

use super::error::Fail;
use std::path::{Path, PathBuf};

/// What training writes beside the weights, under extensions of theirs.
const BESIDE: [&str; 9] = [
    "training_args.bin",
    "optimizer.bin",
    "optimizer.pt",
    "optimizer.pth",
    "scheduler.bin",
    "scheduler.pt",
    "scheduler.pth",
    "scaler.pt",
    "golden.safetensors",
];

/// How likely a name is that of the checkpoint: the lowest that any has counts.
fn rank(name: &str) -> Option<usize> {
    let lower = name.to_ascii_lowercase();
    let named = |end: &str| lower.ends_with(end);
    if BESIDE.contains(&lower.as_str()) || lower.starts_with("rng_state") {
        return None;
    }
    if lower == "model.safetensors" || named(".safetensors.index.json") || named(".pth") {
        Some(0)
    } else if lower == "pytorch_model.bin" {
        Some(1)
    } else if [".safetensors", ".pt", ".bin", ".ckpt", ".pth.tar"]
        .iter()
        .any(|end| named(end))
    {
        Some(2)
    } else {
        None
    }
}

/// The one checkpoint that `directory` holds.
pub(super) fn find(directory: &Path) -> Result<PathBuf, Fail> {
    let io = |error| Fail::io("list", error);
    let unsupported = |problem: &str| Err(Fail::File(problem.into()));
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(io)? {
        if let Ok(name) = entry.map_err(io)?.file_name().into_string() {
            names.push(name);
        }
    }
    let mut found: Vec<(usize, &str)> = names
        .iter()
        .filter_map(|name| Some((rank(name)?, name.as_str())))
        .collect();
    found.sort_unstable();
    let best = found.first().map(|&(rank, _)| rank);
    found.retain(|&(rank, _)| Some(rank) == best);
    let holds = |name: &str| names.iter().any(|found| found == name);
    if holds("manifest.json") && holds("weights.bin") {
        return unsupported(
            "a package that `ratplus export` wrote; give the checkpoint that it was made from",
        );
    }
    if best.is_none_or(|rank| rank > 0) && names.iter().any(|name| name.ends_with(".distcp")) {
        return Err(Fail::File(format!(
            "a checkpoint of torch.distributed.checkpoint (.distcp files): convert it to one file with `python -m \
             torch.distributed.checkpoint.format_utils dcp_to_torch {} model.pth` (in Python, dcp_to_torch_save) and \
             give that",
            directory.display()
        )));
    }
    if best.is_none_or(|rank| rank > 0) && holds("pytorch_model.bin.index.json") {
        return unsupported(
            "shards of PyTorch files (pytorch_model.bin.index.json): load the model and save its state dict as one file, \
             or as safetensors",
        );
    }
    match found.as_slice() {
        [(_, name)] => Ok(directory.join(name)),
        [] => unsupported(
            "the directory holds no model.safetensors, *.safetensors.index.json or *.pth, nor one *.safetensors, *.bin, \
             *.pt or *.ckpt",
        ),
        several => {
            let names: Vec<_> = several.iter().map(|&(_, name)| name).collect();
            unsupported(&format!(
                "the directory holds several checkpoints; give one of {}",
                names.join(", ")
            ))
        }
    }
}
