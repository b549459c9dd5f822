use super::*;
use crate::pattern::Pattern;
use dilated_attention::RawAttributes;

fn attention() -> DilatedAttention {
    let patterns = vec![Pattern::DENSE, Pattern::new(4, 2, 1).unwrap()];
    DilatedAttention::ungrouped(patterns, 0.5)
}

/// B 2, L 3, 2 heads of 8, M 20: 20 + (1 + 2 + 5) rows.
fn inputs() -> Vec<TensorType> {
    use ElementType::{BF16, F32, I64};
    let chunk = TensorType::new(BF16, [2, 3, 16]);
    let cache = TensorType::new(BF16, [2, 28, 8]);
    let length = TensorType::new(I64, [2]);
    let table = TensorType::new(F32, [20, 4]);
    vec![
        chunk.clone(),
        chunk.clone(),
        chunk,
        cache.clone(),
        cache,
        length.clone(),
        length,
        table.clone(),
        table,
    ]
}

#[test]
fn attention_infers_its_outputs() {
    let outputs = Operator::from(attention())
        .infer(&inputs())
        .unwrap()
        .outputs;
    assert_eq!(outputs[0], TensorType::new(ElementType::BF16, [2, 3, 16]));
    assert_eq!(outputs[2], TensorType::new(ElementType::BF16, [2, 28, 8]));
}

#[test]
fn the_cache_has_a_type_of_its_own() {
    for t in ElementType::ACTIVATIONS {
        for c in ElementType::ACTIVATIONS {
            let mut inputs = inputs();
            (0..3).for_each(|port| inputs[port].dtype = t);
            (3..5).for_each(|port| inputs[port].dtype = c);
            let outputs = Operator::from(attention()).infer(&inputs).unwrap().outputs;
            let found: Vec<_> = outputs.iter().map(|output| output.dtype).collect();
            assert_eq!(found, [t, c, c]);
            assert_eq!(check_gpu_cache(t, c).is_ok(), t == c);
        }
    }
    let mut mixed = inputs();
    mixed[3].dtype = ElementType::F16;
    mixed[8].dtype = ElementType::F16;
    let error = Operator::from(attention()).infer(&mixed).unwrap_err();
    assert_eq!(
        error.errors,
        [
            "past_value: expected f16, found bf16",
            "sin: expected f32, found f16"
        ]
    );
    mixed[3].dtype = ElementType::I64;
    let error = Operator::from(attention()).infer(&mixed).unwrap_err();
    assert_eq!(error.errors[0], "past_key: expected f32, found i64");
}

#[test]
fn attention_lists_every_mismatch() {
    let mut inputs = inputs();
    inputs[1].dtype = ElementType::F32;
    inputs[3].shape[1] = 27;
    inputs[4].shape[1] = 27;
    inputs[6].shape[0] = 5;
    let error = Operator::from(attention())
        .infer(&inputs)
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "DilatedAttention: key: expected bf16, found f32; seq_length: expected B = 2 as on \
         earlier inputs, found 5; R: the patterns keep 28 rows for sequences of 20, found 27"
    );
}

#[test]
fn grouped_heads_have_fewer_keys() {
    let grouped = |num_heads| DilatedAttention {
        num_heads,
        ..attention()
    };
    // 6 heads of 8 read 2.
    let mut inputs = inputs();
    inputs[0].shape[2] = 48;
    let inferred = grouped(6).infer(&inputs).unwrap();
    assert_eq!(inferred.outputs[0].shape, [2, 3, 48]);
    assert_eq!(inferred.outputs[1], inputs[3]);
    let error = grouped(4).infer(&inputs).unwrap_err().to_string();
    let expected = "N: expected num_heads x dh = 4 x 8, found 48";
    assert!(error.contains(expected), "{error}");
    inputs[1].shape[2] = 48;
    inputs[2].shape[2] = 48;
    let error = grouped(6).infer(&inputs).unwrap_err().to_string();
    let expected = "Nkv: expected num_kv_heads x dh = 2 x 8, found 48";
    assert!(error.contains(expected), "{error}");
    for (num_kv_heads, said) in [
        (
            0,
            "attribute num_kv_heads: expected a divisor of num_heads 6, found 0",
        ),
        (
            4,
            "attribute num_kv_heads: expected a divisor of num_heads 6, found 4",
        ),
        (
            3,
            "attribute dilation: expected one value or one per key-value head (3), found 2",
        ),
    ] {
        let raw = RawAttributes {
            num_kv_heads: Some(num_kv_heads),
            ..grouped(6).attributes()
        };
        let errors = DilatedAttention::new(raw).unwrap_err();
        assert_eq!(errors[0], said);
    }
}

#[test]
fn attributes_survive_a_round_trip() {
    let uniform = DilatedAttention::ungrouped(vec![Pattern::DENSE; 3], 1.0);
    assert_eq!(uniform.attributes().dilation, [1]);
    // A node that groups nothing does not say so.
    assert_eq!(uniform.attributes().num_kv_heads, None);
    let grouped = DilatedAttention {
        num_heads: 6,
        ..attention()
    };
    assert_eq!(grouped.attributes().num_kv_heads, Some(2));
    for operator in [
        attention().into(),
        uniform.into(),
        grouped.into(),
        RecurrenceScan::default().into(),
    ] {
        let operator: Operator = operator;
        let read = operator.op().read(&mut Given::of(&operator)).unwrap();
        assert_eq!(read, operator);
    }
    let mut raw = attention().attributes();
    raw.dilation = vec![1, 2, 3];
    let errors = DilatedAttention::new(raw).unwrap_err();
    assert_eq!(
        errors,
        ["attribute dilation: expected one value or one per head (2), found 3"]
    );
}

/// A node's attributes by name.
struct Given(Vec<(String, AttributeValue)>);

impl Given {
    fn of(operator: &Operator) -> Self {
        let named = |(spec, value): (&AttributeSpec, _)| (spec.name.to_owned(), value);
        Self(operator.attributes().map(named).collect())
    }
}

impl AttributeReader for Given {
    fn read(&mut self, attribute: &AttributeSpec) -> Result<Option<AttributeValue>, String> {
        let found = self.0.iter().find(|(name, _)| name == attribute.name);
        Ok(found.map(|(_, value)| value.clone()))
    }
}

#[test]
fn every_attribute_that_is_wrong_is_named() {
    let mut given = Given(vec![("scale".into(), AttributeValue::Int(3))]);
    let error = Op::DilatedAttention.read(&mut given).unwrap_err();
    assert_eq!(
        error.errors,
        [
            "attribute num_heads: expected an integer, found none",
            "attribute dilation: expected a list of integers, found none",
            "attribute local_window: expected a list of integers, found none",
            "attribute initial: expected a list of integers, found none",
            "attribute scale: expected a float, found Int(3)",
        ]
    );
    let needed = RawAttributes::SPECS.iter().filter(|spec| !spec.optional);
    assert_eq!(needed.count(), error.errors.len());
}

#[test]
fn schemas_hold_together() {
    for op in Op::ALL {
        let schema = op.schema();
        assert_eq!(Op::named(schema.name), Some(op));
        // Hosts take the first input's type for `T`.
        assert_eq!(schema.variable(PortType::T), Some(0));
        let mut names: Vec<_> = schema.inputs.iter().map(|port| port.name).collect();
        names.extend(schema.outputs.iter().map(|port| port.name));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count, "{op}: two ports of one name");
        for output in schema.outputs {
            let has_source = |&axis| schema.source(axis).is_some();
            assert!(output.axes.iter().all(has_source), "{op} {}", output.name);
        }
        for &(input, output) in schema.aliases {
            let (input, output) = (&schema.inputs[input], &schema.outputs[output]);
            assert_eq!(input.dtype, output.dtype);
            assert_eq!(input.axes, output.axes);
        }
    }
}

#[test]
fn a_list_of_another_length_has_no_names() {
    assert!(dilated_attention::Outputs::from_list([1, 2]).is_none());
    assert!(dilated_attention::Outputs::from_list([1, 2, 3, 4]).is_none());
    let named = dilated_attention::Outputs::from_list([1, 2, 3]).unwrap();
    assert_eq!(named.present_value, 3);
    assert_eq!(named.into_list(), [1, 2, 3]);
    let names = recurrence_scan::Inputs::from_ports(|port| port.name);
    assert_eq!(names.gate, "gate");
}

#[test]
fn scan_infers_its_outputs() {
    let chunk = TensorType::new(ElementType::F16, [2, 3, 16]);
    let state = TensorType::new(ElementType::F32, [2, 16]);
    let length = TensorType::new(ElementType::I64, [2]);
    let inputs = [
        chunk.clone(),
        chunk.clone(),
        chunk.clone(),
        state.clone(),
        state.clone(),
        length.clone(),
        length,
    ];
    let outputs = Operator::from(RecurrenceScan::default())
        .infer(&inputs)
        .unwrap()
        .outputs;
    assert_eq!(outputs, [chunk.clone(), chunk, state.clone(), state]);
}
