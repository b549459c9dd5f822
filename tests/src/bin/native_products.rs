//! `native_products IN.onnx OUT.onnx`: a model as ort-cuda loads it, for the Python tests.

use prost::Message;
use ratplus_graphs::model::native_products;
use ratplus_graphs::onnx::ModelProto;

fn main() {
    let paths: Vec<_> = std::env::args_os().skip(1).collect();
    let [from, to] = paths.as_slice() else {
        panic!("usage: native_products IN.onnx OUT.onnx");
    };
    let bytes = std::fs::read(from).expect("the model is there");
    let mut model = ModelProto::decode(bytes.as_slice()).expect("an ONNX model");
    println!("{}", native_products(&mut model));
    std::fs::write(to, model.encode_to_vec()).expect("the rewritten model is written");
}
