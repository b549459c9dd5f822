//! Every golden folder through the command: export, then verify on every backend.

use ratplus_tests::{GoldenCase, golden_case, golden_cases, run, texts};
use ratplus_tools::verify::STORED_WEIGHTS;
use safetensors::SafeTensors;
use std::ffi::OsString;
use std::path::Path;

/// (batch, tokens) of a golden file.
fn tokens_shape(case: &GoldenCase) -> (usize, usize) {
    let bytes = std::fs::read(case.file("golden.safetensors")).unwrap();
    let shape = SafeTensors::deserialize(&bytes)
        .unwrap()
        .tensor("tokens")
        .unwrap()
        .shape()
        .to_vec();
    (shape[0], shape[1])
}

fn export(case: &GoldenCase, output: &Path, flags: &[String]) {
    let flags = flags.iter().map(String::as_str);
    export_from(case, &case.checkpoint(), output, flags);
}

/// Exports `checkpoint` as the model that `case` is.
fn export_from<'a>(
    case: &GoldenCase,
    checkpoint: &Path,
    output: &Path,
    flags: impl Iterator<Item = &'a str>,
) {
    let mut args: Vec<OsString> = vec![
        "export".into(),
        checkpoint.into(),
        "-o".into(),
        output.into(),
    ];
    args.extend(["--config".into(), case.file("config.json").into()]);
    args.extend(flags.map(OsString::from));
    let result = run(args);
    assert!(
        result.status.success(),
        "{}: {}",
        case.name,
        texts(&result).1
    );
}

/// Runs `verify` and returns its report.
fn verify(case: &GoldenCase, package: &Path, backends: &str, chunks: &str) -> serde_json::Value {
    let golden = case.file("golden.safetensors").into_os_string();
    let args = [
        "verify".into(),
        package.as_os_str().to_owned(),
        "--golden".into(),
        golden,
        "--json".into(),
    ];
    let more = ["--backend", backends, "--chunks", chunks].map(OsString::from);
    let result = run(args.into_iter().chain(more));
    let (stdout, stderr) = texts(&result);
    assert!(result.status.success(), "{}: {stderr}{stdout}", case.name);
    serde_json::from_str(&stdout).unwrap()
}

/// Tokens of a folder that takes seconds a backend.
const LONG: usize = 400;

fn check(dtype: &str, fallback: &str) {
    check_types(dtype, dtype, fallback);
}

fn check_types(dtype: &str, cache_dtype: &str, fallback: &str) {
    for case in golden_cases() {
        let (batch, total) = tokens_shape(&case);
        let dir = tempfile::tempdir().unwrap();
        let package = dir.path().join("package");
        // Every chunking; of the long folders with a cache of another type, one in both its routes.
        let everything = total < LONG || dtype == cache_dtype;
        let lengths = match everything {
            true => format!("7,64,{total}"),
            false => "64".to_owned(),
        };
        let (chunks, routes) = match everything {
            // Decode, in all slots and slot by slot, and two routes for each of three lengths.
            true => (format!("1,{lengths}"), if batch > 1 { 8 } else { 7 }),
            false => (lengths.clone(), 2),
        };
        let flags = [
            ("--dtype", dtype.to_owned()),
            ("--cache-dtype", cache_dtype.to_owned()),
            ("--fallback", fallback.to_owned()),
            ("--logits", "all".to_owned()),
            ("--batch", batch.to_string()),
            ("--prefill-lengths", lengths),
            ("--max-seq-len", total.to_string()),
        ];
        let flags: Vec<_> = flags
            .into_iter()
            .flat_map(|(flag, value)| [flag.to_owned(), value])
            .collect();
        export(&case, &package, &flags);
        let backends = if fallback == "none" {
            "tract,ort-cpu"
        } else {
            "tract,ort-cpu,ort-fallback"
        };
        let report = verify(&case, &package, backends, &chunks);
        let rows = report["rows"].as_array().unwrap();
        let logits = rows.iter().filter(|row| row["tensor"] == "logits").count();
        assert_eq!(
            logits,
            routes * backends.split(',').count(),
            "{}",
            case.name
        );
        let mut taps: Vec<_> = rows
            .iter()
            .filter_map(|row| row["tensor"].as_str())
            .collect();
        taps.sort_unstable();
        taps.dedup();
        // The last of them in the alphabet.
        let stored = taps.pop_if(|tensor| *tensor == STORED_WEIGHTS);
        assert_eq!(stored.is_some(), dtype != "f32", "{}", case.name);
        assert_eq!(
            taps,
            [
                "last_hidden",
                "layer0.gated_key",
                "layer0.gated_value",
                "layer0.hidden",
                "logits"
            ]
        );
        let worst = rows
            .iter()
            .filter(|row| row["tensor"] == "logits" && row["backend"] != "tract")
            .map(|row| row["max_error"].as_f64().unwrap() / row["tolerance"].as_f64().unwrap())
            .fold(0.0, f64::max);
        println!(
            "{} {dtype}, cache {cache_dtype}, {fallback}: largest logit error {worst:.4} of its tolerance",
            case.name
        );
    }
}

#[test]
fn f32_function() {
    check("f32", "function");
}

#[test]
fn f32_inline() {
    check("f32", "inline");
}

#[test]
fn f32_none() {
    check("f32", "none");
}

#[test]
fn f16_function() {
    check("f16", "function");
}

#[test]
fn bf16_function() {
    check("bf16", "function");
}

#[test]
fn bf16_inline() {
    check("bf16", "inline");
}

#[test]
fn f32_with_a_bf16_cache_function() {
    check_types("f32", "bf16", "function");
}

#[test]
fn f32_with_an_f16_cache_inline() {
    check_types("f32", "f16", "inline");
}

#[test]
fn bf16_with_an_f32_cache_function() {
    check_types("bf16", "f32", "function");
}

/// What a trainer saved says its whole model, and so does a conversion with its `config.json`.
#[test]
fn published_files_need_no_flags() {
    for name in ["fsdp_saved", "fsdp_saved_relu", "tied"] {
        let case = golden_case(name);
        let (batch, total) = tokens_shape(&case);
        let dir = tempfile::tempdir().unwrap();
        let package = dir.path().join("package");
        let shape = format!("--batch {batch} --max-seq-len {total} --logits all");
        let args = [
            "export".into(),
            case.checkpoint().into_os_string(),
            "-o".into(),
        ];
        let args = args.into_iter().chain([package.clone().into_os_string()]);
        let result = run(args.chain(shape.split(' ').map(OsString::from)));
        assert!(result.status.success(), "{name}: {}", texts(&result).1);
        let report = verify(&case, &package, "tract,ort-cpu,ort-fallback", "1,64");
        assert_eq!(report["passed"], true, "{name}");
        let json = std::fs::read(package.join("manifest.json")).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&json).unwrap();
        let config = std::fs::read(case.file("config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
        for field in ["activation", "tie_embedding", "rope_base", "recurrence"] {
            assert_eq!(manifest["model"][field], config[field], "{name}: {field}");
        }
    }
}

/// A tied matrix is in the weights file once, in every type; a head that is stored otherwise is
/// beside it.
#[test]
fn a_tied_matrix_is_stored_once() {
    let case = golden_case("tied");
    let dir = tempfile::tempdir().unwrap();
    let package = dir.path().join("package");
    let heads = |flags: &str| {
        export(
            &case,
            &package,
            &flags.split(' ').map(str::to_owned).collect::<Vec<_>>(),
        );
        let bytes = std::fs::read(package.join("decode.onnx")).unwrap();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        (
            text.contains("head.lm_head.weight"),
            std::fs::metadata(package.join("weights.bin"))
                .unwrap()
                .len(),
        )
    };
    // 97 rows of 64, each tensor at a multiple of 4096 bytes.
    let matrix = |size: u64| (97 * 64 * size).next_multiple_of(4096);
    let (f32, whole) = heads("--max-seq-len 64");
    let (bf16, _) = heads("--max-seq-len 64 --dtype bf16");
    assert_eq!((f32, bf16), (false, false));
    let (apart, larger) = heads("--max-seq-len 64 --dtype bf16 --keep-f32 head");
    let (_, smaller) = heads("--max-seq-len 64 --dtype bf16");
    assert!(apart && larger - smaller >= matrix(4), "{larger} {smaller}");
    let untied = golden_case("fsdp_saved_relu");
    export(&untied, &package, &["--max-seq-len".into(), "64".into()]);
    let two = std::fs::metadata(package.join("weights.bin"))
        .unwrap()
        .len();
    assert_eq!(two - whole, matrix(4));
}

/// Block-wise integers are another model than the golden file's, and every backend computes that
/// one as closely as any: its logits are held to tract's with the same integers.
fn quantised(dtype: &str, flags: &str) {
    for case in golden_cases() {
        let (batch, total) = tokens_shape(&case);
        if total >= LONG {
            continue;
        }
        let dir = tempfile::tempdir().unwrap();
        let package = dir.path().join("package");
        let common = format!(
            "{flags} --dtype {dtype} --logits all --batch {batch} --prefill-lengths 64 --max-seq-len {total}"
        );
        let flags: Vec<_> = common.split(' ').map(str::to_owned).collect();
        export(&case, &package, &flags);
        let report = verify(&case, &package, "tract,ort-cpu,ort-fallback", "1,64");
        let rows = report["rows"].as_array().unwrap();
        let number = |value: &serde_json::Value| value.as_f64().unwrap();
        let largest = number(&report["largest_logit"]);
        let stored = rows
            .iter()
            .find(|row| row["tensor"] == STORED_WEIGHTS)
            .unwrap();
        let relative = number(&stored["max_error"]) / largest;
        // The integers do something, and what they do is no ruin.
        let bits4 = common.contains("int4");
        // Where queries choose blocks, some choose others.
        let config = std::fs::read_to_string(case.file("config.json")).unwrap();
        let expected = match (config.contains("block_size"), bits4) {
            (false, true) => 2e-3..0.5,
            (false, false) => 1e-4..0.05,
            (true, true) => 2e-3..0.6,
            (true, false) => 1e-4..0.3,
        };
        assert!(
            expected.contains(&relative),
            "{} {common}: {relative}",
            case.name
        );
        if dtype == "f32" {
            let held = rows.iter().filter(|row| row["tensor"] == "logits");
            for row in held {
                assert!(number(&row["tolerance"]) <= 2e-4 * largest * 1.001, "{row}");
            }
        }
        println!(
            "{} {common}: moved by {relative:.4} of the largest logit, {:.2} of the tolerance",
            case.name,
            number(&stored["max_error"]) / number(&stored["tolerance"])
        );
    }
}

#[test]
fn quantised_int4() {
    quantised("f32", "--quantize int4");
}

#[test]
fn quantised_int4_asymmetric() {
    quantised("f32", "--quantize int4 --asymmetric --block-size 16");
}

#[test]
fn quantised_int8_but_a_layer() {
    quantised("f32", "--quantize int8 --block-size 128 --keep-f32 0");
}

#[test]
fn quantised_int8_asymmetric_bf16() {
    quantised("bf16", "--quantize int8 --asymmetric");
}

#[test]
fn quantised_int4_inline() {
    quantised("f32", "--quantize int4 --fallback inline");
}

#[test]
fn quantised_int8_bf16_inline() {
    quantised("bf16", "--quantize int8 --block-size 64 --fallback inline");
}

#[test]
fn quantised_int4_f16_but_a_layer_and_the_head() {
    quantised("f16", "--quantize int4 --block-size 64 --keep-f32 1-1,head");
}

/// A copy of a checkpoint with the rows of one matrix in the opposite order.
fn with_rows_reversed(checkpoint: &Path, copy: &Path, matrix: &str) {
    use safetensors::tensor::TensorView;
    let bytes = std::fs::read(checkpoint).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors: Vec<_> = file
        .iter()
        .map(|(name, view)| {
            let mut data = view.data().to_vec();
            if name == matrix {
                let row = data.len() / view.shape()[0];
                data = data.chunks(row).rev().flatten().copied().collect();
                assert_ne!(data, view.data());
            }
            (name.to_owned(), view.dtype(), view.shape().to_vec(), data)
        })
        .collect();
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        let view = TensorView::new(*dtype, shape.clone(), data).unwrap();
        (name, view)
    });
    std::fs::write(copy, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// However coarse the weights are: what the golden file's model does not have is no rounding.
#[test]
fn other_weights_are_not_taken_for_rounding() {
    let case = golden_case("streaming");
    let (_, total) = tokens_shape(&case);
    let dir = tempfile::tempdir().unwrap();
    let other = dir.path().join("other.safetensors");
    let matrix = "backbone.layers.1.seq_layer.out_proj.weight";
    with_rows_reversed(&case.checkpoint(), &other, matrix);
    let golden = case.file("golden.safetensors").into_os_string();
    for flags in [
        "--dtype bf16",
        "--dtype f16",
        "--quantize int8",
        "--quantize int4",
        "--quantize int4 --dtype bf16 --block-size 256",
    ] {
        for (checkpoint, sound) in [(case.checkpoint(), true), (other.clone(), false)] {
            let package = dir.path().join("package");
            let flags = format!("{flags} --max-seq-len {total}");
            export_from(&case, &checkpoint, &package, flags.split(' '));
            let words = ["--json", "--backend", "tract", "--chunks", "1", "--golden"];
            let args = ["verify".into(), package.into_os_string()];
            let args = args.into_iter().chain(words.map(OsString::from));
            let result = run(args.chain([golden.clone()]));
            let (stdout, stderr) = texts(&result);
            let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
            let row = &report["rows"][0];
            println!("{flags}: {} of {}", row["max_error"], row["tolerance"]);
            assert_eq!(row["tensor"], STORED_WEIGHTS);
            assert_eq!(row["passed"], sound, "{flags}: {row}");
            assert_eq!(result.status.code(), Some(i32::from(!sound)), "{stderr}");
        }
    }
}

/// Writes a golden file with the logits of a few positions.
fn only_positions(golden: &Path, sparse: &Path, positions: &[usize]) {
    use safetensors::tensor::{Dtype, TensorView};
    let bytes = std::fs::read(golden).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (tokens, logits) = (
        file.tensor("tokens").unwrap(),
        file.tensor("logits").unwrap(),
    );
    let &[batch, all, vocab] = logits.shape() else {
        panic!()
    };
    let rows = (0..batch).flat_map(|sequence| {
        positions
            .iter()
            .map(move |position| sequence * all + position)
    });
    let kept: Vec<u8> = rows
        .flat_map(|row| logits.data()[4 * row * vocab..4 * (row + 1) * vocab].to_vec())
        .collect();
    let places: Vec<u8> = positions
        .iter()
        .flat_map(|&position| (position as i64).to_le_bytes())
        .collect();
    let views = [
        (
            "tokens",
            TensorView::new(Dtype::I64, tokens.shape().to_vec(), tokens.data()).unwrap(),
        ),
        (
            "positions",
            TensorView::new(Dtype::I64, vec![positions.len()], &places).unwrap(),
        ),
        (
            "logits",
            TensorView::new(Dtype::F32, vec![batch, positions.len(), vocab], &kept).unwrap(),
        ),
    ];
    std::fs::write(sparse, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// With logits of the last token only, the chunk ends and every decoded position are compared.
#[test]
fn logits_of_the_last_token() {
    // 2 sequences of 150 tokens: 64, 128 and 150; then 86 prefilled and 64 decoded.
    last_token("head_hybrid", 2 * 3, 2 * (2 + 64));
    // Of 120, whose queries choose blocks: 64 and 120; then 60 and 60.
    last_token("topk_bounds", 2, 1 + 60);
}

fn last_token(name: &str, prefilled: u64, decoded: u64) {
    let case = golden_case(name);
    let (batch, total) = tokens_shape(&case);
    let dir = tempfile::tempdir().unwrap();
    let package = dir.path().join("package");
    export(
        &case,
        &package,
        &[
            "--prefill-lengths".into(),
            "64".into(),
            "--batch".into(),
            "3".into(),
        ],
    );
    let report = verify(&case, &package, "tract,ort-cpu", "1,64");
    let rows = |backend: &str, route: &str| {
        let found = report["rows"].as_array().unwrap().iter().find(|row| {
            row["backend"] == backend && row["route"] == route && row["tensor"] == "logits"
        });
        found.unwrap()["rows"].as_u64().unwrap()
    };
    assert_eq!(rows("ort-cpu", "prefill by 64"), prefilled, "{name}");
    assert_eq!(rows("ort-cpu", "prefill by 64, decode"), decoded, "{name}");
    assert_eq!(rows("ort-cpu", "decode"), (batch * total) as u64, "{name}");
    // A golden file of sparse positions: a route that returns none of them compares nothing, which
    // is said, and does not pass as a comparison of every backend.
    let sparse = dir.path().join("sparse.safetensors");
    only_positions(&case.file("golden.safetensors"), &sparse, &[5, total - 1]);
    let package = package.as_os_str();
    let verify = |chunks: &str| {
        let args = [
            "verify".into(),
            package.to_owned(),
            "--golden".into(),
            sparse.clone().into(),
        ];
        run(args
            .into_iter()
            .chain(["--backend", "tract,ort-cpu", "--chunks", chunks].map(OsString::from)))
    };
    let both = verify("1,64");
    let (stdout, stderr) = texts(&both);
    assert!(both.status.success(), "{stdout}{stderr}");
    only_positions(&case.file("golden.safetensors"), &sparse, &[5]);
    let some = verify("1,64");
    let (stdout, _) = texts(&some);
    assert!(
        some.status.success() && stdout.contains("4 not compared"),
        "{stdout}"
    );
    let none = verify("64");
    assert_eq!(none.status.code(), Some(1), "{}", texts(&none).0);
    assert!(
        texts(&none).1.contains("compared nowhere"),
        "{}",
        texts(&none).1
    );
}
