//! Requests, responses, panics, configurations and the log, against a stand-in for the server.

use crate::config::{Config, Settings};
use crate::double::{Fate, LOG, LOGS, ModelDouble, Piece, RequestDouble};
use crate::error::{Fault, entry, guarded};
use crate::ffi::{self, Code, DataType};
use crate::log::ServerLog;
use crate::response::{Output, Owned};
use crate::{TRITONBACKEND_ModelInstanceExecute, take};
use ratplus_runtime::backend::BackendKind;
use ratplus_runtime::scheduler;
use serde_json::{Map, Value, json};
use std::cell::Cell;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

fn piece(name: &'static str, data_type: DataType, shape: &[i64], buffers: &[&[u8]]) -> Piece {
    let buffers: Vec<_> = buffers.iter().map(|bytes| bytes.to_vec()).collect();
    Piece {
        name,
        data_type,
        shape: shape.into(),
        bytes: buffers.iter().map(Vec::len).sum::<usize>() as u64,
        buffers,
        memory: ffi::MEMORY_CPU,
    }
}

fn owned(inputs: Vec<Piece>) -> (Owned, Arc<Fate>) {
    let (request, fate) = RequestDouble::of(inputs);
    // SAFETY: a request of the stand-in's, which uses no instance.
    (unsafe { Owned::take(ptr::null_mut(), request) }, fate)
}

/// Whether it was released once, and its last response was one.
fn is_over(fate: &Fate) -> bool {
    let sent = fate.sent.lock().unwrap();
    let last = sent.iter().filter(|sent| sent.flags == ffi::RESPONSE_FINAL);
    let times = fate.statistics.lock().unwrap();
    assert_eq!(times.len(), 1);
    assert!(times[0].1.is_sorted(), "{times:?}");
    let counts = (fate.released.load(SeqCst), fate.factories.load(SeqCst));
    counts == (1, 0) && last.count() == 1 && sent.last().unwrap().flags == ffi::RESPONSE_FINAL
}

#[test]
fn a_request_has_one_last_response_whatever_happens() {
    // Nothing.
    let (request, fate) = owned(Vec::new());
    drop(request);
    assert!(is_over(&fate));
    let error = fate.sent.lock().unwrap()[0].error.clone().unwrap();
    assert_eq!(error.0, Code::Unavailable as i32);
    // An error, twice.
    let (mut request, fate) = owned(Vec::new());
    request.fail(&Fault::invalid("first"));
    request.fail(&Fault::invalid("second"));
    drop(request);
    assert!(is_over(&fate));
    let sent = fate.sent.lock().unwrap();
    assert_eq!(
        sent[0].error,
        Some((Code::InvalidArgument as i32, "first".into()))
    );
    assert_eq!(sent.len(), 1);
    // Parts, then the end.
    let (mut request, fate) = owned(Vec::new());
    request.send(&[Output::text("a", "xy")], false).unwrap();
    request.send(&[Output::tokens("b", &[1, 2])], true).unwrap();
    drop(request);
    assert!(is_over(&fate));
    let sent = fate.sent.lock().unwrap();
    assert_eq!(
        sent[0].outputs,
        [("a".into(), vec![1], b"\x02\0\0\0xy".to_vec())]
    );
    assert_eq!(
        sent[1].outputs,
        [("b".into(), vec![2], b"\x01\0\0\0\x02\0\0\0".to_vec())]
    );
    assert!(fate.statistics.lock().unwrap()[0].0);
    // No outputs at the end.
    let (mut request, fate) = owned(Vec::new());
    request.end().unwrap();
    drop(request);
    assert!(is_over(&fate));
    // An output that the server has no room for.
    let (mut request, fate) = owned(Vec::new());
    let fault = request
        .send(&[Output::text("no room", "x")], true)
        .unwrap_err();
    request.fail(&fault);
    drop(request);
    assert!(is_over(&fate));
    assert!(fate.sent.lock().unwrap()[0].error.is_some());
}

#[test]
fn tensors_come_in_pieces() {
    let text = piece(
        "text_input",
        DataType::BYTES,
        &[1],
        &[b"\x05\0", b"\0\0he", b"llo"],
    );
    let ids = piece(
        "input_ids",
        DataType::INT64,
        &[1, 2],
        &[&7i64.to_le_bytes(), &8i64.to_le_bytes()],
    );
    let flag = piece("stream", DataType::BOOL, &[1], &[b"\x01"]);
    let (request, _) = owned(vec![text, ids, flag]);
    let tensors = request.tensors();
    assert_eq!(tensors.text("text_input").unwrap().unwrap(), "hello");
    assert_eq!(tensors.tokens("input_ids", 9).unwrap().unwrap(), [7, 8]);
    assert_eq!(tensors.flag("stream").unwrap(), Some(true));
    assert!(tensors.text("absent").unwrap().is_none());
}

#[test]
fn tensors_that_lie_are_refused_by_name() {
    const BYTES: DataType = DataType::BYTES;
    let id = 7i32.to_le_bytes();
    let far = Piece {
        memory: ffi::MEMORY_GPU,
        ..piece("x", BYTES, &[1], &[b"\x01\0\0\0a"])
    };
    let large = Piece {
        bytes: u64::MAX,
        ..piece("x", BYTES, &[1], &[])
    };
    for (tensor, said) in [
        (
            piece("x", DataType::FP32, &[1], &[b"\0\0\0\0"]),
            "expected BYTES",
        ),
        (
            piece("x", BYTES, &[2], &[b"\x01\0\0\0a"]),
            "expected the shape [1]",
        ),
        (
            piece("x", BYTES, &[-1], &[b"\x01\0\0\0a"]),
            "expected the shape [1]",
        ),
        (piece("x", BYTES, &[1], &[]), "expected one string"),
        (piece("x", BYTES, &[1], &[b"\x01\0"]), "expected one string"),
        (
            piece("x", BYTES, &[1], &[b"\xff\xff\xff\xffa"]),
            "expected one string",
        ),
        (
            piece("x", BYTES, &[1], &[b"\x01\0\0\0\xff"]),
            "expected UTF-8",
        ),
        (far, "a GPU's"),
        (large, "expected at most"),
    ] {
        let (request, _) = owned(vec![tensor]);
        let fault = request.tensors().text("x").unwrap_err();
        assert!(
            fault.message.contains(said) && fault.message.starts_with("`x`"),
            "{fault}"
        );
        assert_eq!(fault.code, Code::InvalidArgument);
    }
    for (tensor, said) in [
        (
            piece("x", DataType::UINT32, &[1], &[&id]),
            "expected INT32 or INT64",
        ),
        (
            piece("x", DataType::INT32, &[2, 2], &[&[0; 16]]),
            "expected the shape [-1]",
        ),
        (
            piece("x", DataType::INT32, &[-5], &[&id]),
            "expected the shape [-1]",
        ),
        (
            piece("x", DataType::INT32, &[2], &[&id]),
            "expected the bytes of 2 tokens",
        ),
        (
            piece("x", DataType::INT32, &[i64::MAX], &[&id]),
            "expected the bytes of",
        ),
        (
            piece("x", DataType::INT32, &[1], &[&id]),
            "expected token ids of 0 to 6, found 7",
        ),
        (
            piece("x", DataType::INT64, &[1], &[&i64::MIN.to_le_bytes()]),
            "expected token ids",
        ),
    ] {
        let (request, _) = owned(vec![tensor]);
        let fault = request.tensors().tokens("x", 7).unwrap_err();
        assert!(fault.message.contains(said), "{fault}");
    }
}

#[test]
fn no_panic_and_no_lost_request_crosses_the_border() {
    let fault = guarded::<()>(|| panic!("number {}", 7)).unwrap_err();
    assert!(fault.message.ends_with("panic: number 7") && fault.code == Code::Internal);
    let status = entry(|| panic!("in it"));
    assert!(!status.is_null());
    // SAFETY: the stand-in's.
    unsafe { ffi::TRITONSERVER_ErrorDelete(status) };
    // A panic drops the request, which is answered.
    let (request, fate) = owned(Vec::new());
    let _ = guarded::<()>(move || {
        let _request = request;
        panic!("with it")
    });
    assert!(is_over(&fate));
    // A model without a state: the request stays the server's.
    let (request, fate) = RequestDouble::of(Vec::new());
    let mut requests = [request];
    // SAFETY: the stand-in's, which knows no instance's model.
    let status =
        unsafe { TRITONBACKEND_ModelInstanceExecute(ptr::null_mut(), requests.as_mut_ptr(), 1) };
    assert!(!status.is_null());
    assert_eq!(fate.released.load(SeqCst), 0);
    // SAFETY: as above.
    unsafe {
        ffi::TRITONSERVER_ErrorDelete(status);
        ffi::TRITONBACKEND_RequestRelease(request, ffi::RELEASE_ALL);
    }
}

#[test]
fn a_panic_at_the_intake_ends_its_request_alone() {
    let (first, lost) = RequestDouble::of(Vec::new());
    let (second, answered) = RequestDouble::of(Vec::new());
    let number = Cell::new(0);
    let accept = |mut owned: Owned| {
        number.set(number.get() + 1);
        assert!(number.get() > 1, "the first one");
        owned.fail(&Fault::invalid("told"));
    };
    // SAFETY: the stand-in's, which uses no instance.
    unsafe { take(ptr::null_mut(), [first, second].as_mut_ptr(), 2, accept) };
    let told = |fate: &Fate| fate.sent.lock().unwrap()[0].error.clone().unwrap();
    assert!(is_over(&lost) && is_over(&answered));
    let (code, message) = told(&lost);
    assert!(
        code == Code::Internal as i32 && message.contains("a defect"),
        "{message}"
    );
    assert_eq!(
        told(&answered),
        (Code::InvalidArgument as i32, "told".into())
    );
}

#[test]
fn the_log_follows_the_servers_levels_as_they_change() {
    let says = |on| {
        LOGS.store(on, SeqCst);
        tracing::debug!(on, "heard");
    };
    tracing::subscriber::with_default(ServerLog, || [false, true, false, true].map(says));
    let lines: Vec<_> = LOG.lock().unwrap().clone();
    let heard = lines.iter().filter(|line| line.contains("heard"));
    assert_eq!(
        heard.collect::<Vec<_>>(),
        ["ratplus: heard on=true"; 2],
        "{lines:?}"
    );
}

fn configured(config: &Value, given: &Map<String, Value>) -> Result<Config, Fault> {
    let mut model = ModelDouble {
        config: CString::new(config.to_string()).unwrap(),
        folder: c"/models/kjv".into(),
    };
    let model = ptr::from_mut(&mut model).cast();
    // SAFETY: the stand-in's.
    unsafe { Config::of(model, 3, given, Path::new("/nowhere")) }
}

#[test]
fn a_configuration_has_the_defaults_of_the_server_of_http() {
    let config = configured(&json!({"max_batch_size": 0}), &Map::new()).unwrap();
    assert_eq!(config.package, Path::new("/models/kjv/3"));
    assert!(!config.decoupled);
    let expected = Settings {
        backend: BackendKind::OrtCpu,
        threads: None,
        device: 0,
        no_cuda_graph: false,
        onnxruntime: None,
        custom_ops: None,
        prefill_chunk: None,
        decode_steps_per_chunk: scheduler::Options::default().decode_steps_per_chunk,
        prefix_cache_bytes: scheduler::DEFAULT_PREFIX_CACHE_BYTES,
    };
    assert_eq!(config.engine, expected);
}

#[test]
fn a_models_parameters_go_before_the_command_lines() {
    let text = |text: &str| json!({"string_value": text});
    let config = json!({
        "max_batch_size": 0,
        "model_transaction_policy": {"decoupled": true},
        "parameters": {
            "package": text("../../other/1"),
            "threads": text("3"),
            "no_cuda_graph": text("true"),
        },
    });
    let Value::Object(given) = json!({"threads": "5", "onnxruntime": "/lib/ort.so"}) else {
        unreachable!()
    };
    let config = configured(&config, &given).unwrap();
    assert!(config.decoupled && config.engine.no_cuda_graph);
    assert_eq!(config.package, Path::new("/models/kjv/3/../../other/1"));
    assert_eq!(config.engine.threads, Some(3));
    assert_eq!(
        config.engine.onnxruntime,
        Some(PathBuf::from("/lib/ort.so"))
    );
}

#[test]
fn everything_wrong_in_a_configuration_is_told_at_once() {
    let text = |text: &str| json!({"string_value": text});
    let config = json!({
        "max_batch_size": 4,
        "input": [{"name": "text", "data_type": "TYPE_STRING", "dims": [1]}],
        "output": [{"name": "output_ids", "data_type": "TYPE_FP32", "dims": ["2"]}],
        "parameters": {"threads": text("many"), "prefix_cash": text("1"), "backend": text("gpu")},
    });
    let fault = configured(&config, &Map::new()).err().unwrap();
    assert_eq!(fault.code, Code::InvalidArgument);
    for said in [
        "`max_batch_size`: expected 0, found 4",
        "input `text`: expected one of text_input",
        "output `output_ids`: expected TYPE_INT32, found TYPE_FP32",
        "output `output_ids`: expected dims: [ -1 ], found [\"2\"]",
        "parameter `threads`:",
        "parameter `prefix_cash`: expected one of package",
        "parameter `backend`:",
    ] {
        assert!(fault.message.contains(said), "{said}: {fault}");
    }
}
