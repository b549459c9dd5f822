//! Products with block-wise integers. tract has no such operator: their matrices are widened to f32
//! once, when weights are loaded, and the nodes become `Gemm`.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use ratplus_graphs::onnx::{AttributeProto, GraphProto, NodeProto};
use ratplus_graphs::ops::{ElementType, TensorType};
use ratplus_graphs::precision::{MATMUL_NBITS, MICROSOFT_DOMAIN, has_lowest_bits};

/// A node `rows x matrix^T` whose matrix is four-bit integers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Product {
    /// Initializer of `[outputs, blocks, block_size / 2]` bytes; the widened matrix takes its name.
    pub blocks: String,
    /// Initializer of a scale for each block.
    pub scales: String,
    /// Initializer of a zero point for each block, two a byte; 8 where there is none.
    pub zero_points: Option<String>,
    outputs: usize,
    inputs: usize,
    block_size: usize,
}

/// Whether the node is such a product.
pub(crate) fn is_product(node: &NodeProto) -> bool {
    node.domain == MICROSOFT_DOMAIN && node.op_type == MATMUL_NBITS
}

/// Every such product of a graph.
pub(crate) fn products(graph: &GraphProto) -> Result<Vec<Product>, Vec<String>> {
    let (mut found, mut errors) = (Vec::new(), Vec::new());
    for node in graph.node.iter().filter(|node| is_product(node)) {
        match product(node) {
            Ok(product) => found.push(product),
            Err(problem) => errors.push(format!("node `{}`: {problem}", node.name)),
        }
    }
    if errors.is_empty() {
        Ok(found)
    } else {
        Err(errors)
    }
}

fn product(node: &NodeProto) -> Result<Product, String> {
    let size = |name: &str| {
        let value = node.find_attribute(name).and_then(|found| found.i);
        let size = value.and_then(|value| usize::try_from(value).ok());
        size.filter(|&size| size > 0)
            .ok_or_else(|| format!("{name}: expected a positive number, found {value:?}"))
    };
    let (outputs, inputs, block_size) = (size("N")?, size("K")?, size("block_size")?);
    let bits = size("bits")?;
    if bits != 4 || !block_size.is_multiple_of(2) {
        return Err(format!(
            "expected bits 4 and an even block_size, found {bits} and {block_size}"
        ));
    }
    let (blocks, scales, zero_points) = match &node.input[..] {
        [_, blocks, scales] => (blocks, scales, None),
        [_, blocks, scales, zero_points] => (blocks, scales, Some(zero_points.clone())),
        other => {
            return Err(format!(
                "expected rows, blocks, scales and at most zero points, found {} inputs",
                other.len()
            ));
        }
    };
    Ok(Product {
        blocks: blocks.clone(),
        scales: scales.clone(),
        zero_points,
        outputs,
        inputs,
        block_size,
    })
}

impl Product {
    /// Type and shape of the widened matrix.
    pub fn matrix(&self) -> TensorType {
        TensorType::new(ElementType::F32, [self.outputs, self.inputs])
    }

    /// The initializers it is made of.
    pub fn parts(&self) -> impl Iterator<Item = &String> {
        [&self.blocks, &self.scales]
            .into_iter()
            .chain(&self.zero_points)
    }

    /// Turns the node into one that tract has.
    pub fn rewrite(&self, node: &mut NodeProto) {
        node.domain.clear();
        node.op_type = "Gemm".into();
        node.input.truncate(2);
        node.attribute = vec![AttributeProto::int("transB", 1)];
    }

    /// The matrix, row by row, of the bytes of [`parts`](Self::parts); `noise` moves every value by
    /// up to half a step, as rounding did.
    pub fn widen(
        &self,
        parts: &[Vec<u8>],
        noise: &mut Option<ChaCha8Rng>,
    ) -> Result<Vec<f32>, String> {
        let mut noise = noise.as_mut().filter(|_| has_lowest_bits(&self.blocks));
        let Self {
            outputs,
            inputs,
            block_size,
            ..
        } = *self;
        let row_blocks = inputs.div_ceil(block_size);
        let zero_bytes = row_blocks.div_ceil(2);
        let [blocks, scales] = [0, 1].map(|part| parts.get(part).map_or(&[][..], |part| part));
        let zero_points = parts.get(2);
        for (what, found, row_bytes) in [
            ("blocks", Some(blocks.len()), row_blocks * (block_size / 2)),
            ("scales", Some(scales.len()), row_blocks * 4),
            ("zero points", zero_points.map(Vec::len), zero_bytes),
        ] {
            let expected = row_bytes.checked_mul(outputs);
            if found.is_some_and(|found| expected != Some(found)) {
                return Err(format!(
                    "{what}: expected {row_bytes} bytes for each of {outputs} rows, found {found:?} in all"
                ));
            }
        }
        let half = |byte: u8, index: usize| match index % 2 {
            0 => byte & 15,
            _ => byte >> 4,
        };
        let mut matrix = Vec::with_capacity(outputs * inputs);
        for row in 0..outputs {
            for column in 0..inputs {
                let (block, within) = (column / block_size, column % block_size);
                let index = row * row_blocks + block;
                let byte = blocks[(index * block_size + within) / 2];
                let zero = match zero_points {
                    Some(bytes) => half(bytes[row * zero_bytes + block / 2], block),
                    None => 8,
                };
                let mut scale = [0; 4];
                scale.copy_from_slice(&scales[4 * index..4 * index + 4]);
                let steps = i32::from(half(byte, within)) - i32::from(zero);
                let moved = noise
                    .as_mut()
                    .map_or(0.0, |rng| rng.random_range(-0.5..0.5));
                matrix.push(f32::from_le_bytes(scale) * (steps as f32 + moved));
            }
        }
        Ok(matrix)
    }
}
