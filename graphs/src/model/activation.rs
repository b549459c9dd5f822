use crate::onnx::NodeWriter;
use crate::spec::Activation;

/// Writes `activation` of the f32 value `x` and returns the result's name.
pub(super) fn write(w: &mut NodeWriter, activation: Activation, x: &str) -> String {
    match activation {
        Activation::Gelu => {
            let root = w.float(std::f32::consts::SQRT_2);
            let scaled = w.call("Div", &[x, &root]);
            let erf = w.call("Erf", &[&scaled]);
            gated_half(w, x, &erf)
        }
        Activation::FastGelu => {
            let square = w.call("Mul", &[x, x]);
            let cubic = w.float(0.044715);
            let inner = w.call("Mul", &[&square, &cubic]);
            let one = w.float(1.0);
            let inner = w.call("Add", &[&inner, &one]);
            let inner = w.call("Mul", &[&inner, x]);
            let root = w.float((2.0 / std::f64::consts::PI).sqrt() as f32);
            let inner = w.call("Mul", &[&inner, &root]);
            let tanh = w.call("Tanh", &[&inner]);
            gated_half(w, x, &tanh)
        }
        Activation::Silu => {
            let gate = w.call("Sigmoid", &[x]);
            w.call("Mul", &[x, &gate])
        }
        Activation::Relu => w.call("Relu", &[x]),
        Activation::ReluSquared => {
            let positive = w.call("Relu", &[x]);
            w.call("Mul", &[&positive, &positive])
        }
    }
}

/// `x (1 + gate) / 2`.
fn gated_half(w: &mut NodeWriter, x: &str, gate: &str) -> String {
    let one = w.float(1.0);
    let factor = w.call("Add", &[gate, &one]);
    let product = w.call("Mul", &[x, &factor]);
    let half = w.float(0.5);
    w.call("Mul", &[&product, &half])
}
