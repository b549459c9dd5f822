//! Writers of checkpoints, right and wrong, for tests: PyTorch is not needed to make them. And
//! what tests ask of the readers behind [`Checkpoint`](super::Checkpoint).

#[allow(unsafe_code)]
pub mod allocation;

use super::tensor::{StoredType, Tensor};

/// Name, first byte and length of every record of a zip archive, or why it is refused.
pub fn zip_entries(bytes: Vec<u8>) -> Result<Vec<(String, u64, u64)>, super::CheckpointError> {
    let entries = super::zip::entries(&bytes).map_err(|fail| fail.at("x.zip".as_ref()))?;
    let place = |entry: super::zip::Entry| (entry.name, entry.offset, entry.len);
    Ok(entries.into_iter().map(place).collect())
}

/// First byte of a tensor in its file, and its strides in elements.
pub fn place(tensor: &Tensor) -> (u64, &[u64]) {
    (tensor.offset, &tensor.strides)
}

/// One record of an archive, with everything that can be lied about.
#[derive(Clone, Debug)]
pub struct ZipRecord {
    pub name: String,
    pub data: Vec<u8>,
    pub local_name: Option<String>,
    pub crc: Option<u32>,
    pub local_crc: Option<u32>,
    pub flags: u16,
    pub local_flags: Option<u16>,
    pub method: u16,
    pub central_size: Option<u32>,
    pub central_compressed: Option<u32>,
    pub start: Option<u32>,
    pub central_extra: Vec<u8>,
    pub local_extra: Vec<u8>,
    pub comment: Vec<u8>,
    pub disk: u16,
    /// CRC and sizes follow the data, as `torch.save` has it.
    pub descriptor: bool,
    pub descriptor_crc: Option<u32>,
}

impl ZipRecord {
    pub fn new(name: impl Into<String>, data: impl Into<Vec<u8>>) -> Self {
        Self {
            name: name.into(),
            data: data.into(),
            local_name: None,
            crc: None,
            local_crc: None,
            flags: 0x0800,
            local_flags: None,
            method: 0,
            central_size: None,
            central_compressed: None,
            start: None,
            central_extra: Vec::new(),
            local_extra: Vec::new(),
            comment: Vec::new(),
            disk: 0,
            descriptor: false,
            descriptor_crc: None,
        }
    }
}

/// The end of an archive.
#[derive(Clone, Debug, Default)]
pub struct ZipEnd {
    pub zip64: bool,
    pub zip64_entries: Option<u64>,
    pub zip64_offset: Option<u64>,
    pub zip64_len: Option<u64>,
    pub locator: Option<u64>,
    pub entries: Option<u16>,
    pub offset: Option<u32>,
    pub len: Option<u32>,
    pub disk: u16,
    pub comment: Vec<u8>,
    pub trailing: Vec<u8>,
}

pub fn zip(records: &[ZipRecord], end: &ZipEnd) -> Vec<u8> {
    let mut out = Vec::new();
    let mut central = Vec::new();
    for record in records {
        let start = out.len() as u32;
        let crc = record.crc.unwrap_or_else(|| crc32fast::hash(&record.data));
        let len = record.data.len() as u32;
        let descriptor = if record.descriptor { 8 } else { 0 };
        let flags = record.flags | descriptor;
        let local_name = record.local_name.as_ref().unwrap_or(&record.name);
        out.extend(0x0403_4b50u32.to_le_bytes());
        out.extend([0, 0]);
        out.extend(record.local_flags.unwrap_or(flags).to_le_bytes());
        out.extend(record.method.to_le_bytes());
        out.extend([0; 4]);
        let (local_crc, local_len) = if record.descriptor {
            (0, 0)
        } else {
            (crc, len)
        };
        out.extend(record.local_crc.unwrap_or(local_crc).to_le_bytes());
        out.extend(local_len.to_le_bytes());
        out.extend(local_len.to_le_bytes());
        out.extend((local_name.len() as u16).to_le_bytes());
        out.extend((record.local_extra.len() as u16).to_le_bytes());
        out.extend(local_name.as_bytes());
        out.extend(&record.local_extra);
        out.extend(&record.data);
        if record.descriptor {
            out.extend(0x0807_4b50u32.to_le_bytes());
            out.extend(record.descriptor_crc.unwrap_or(crc).to_le_bytes());
            out.extend(len.to_le_bytes());
            out.extend(len.to_le_bytes());
        }
        central.extend(0x0201_4b50u32.to_le_bytes());
        central.extend([0; 4]);
        central.extend(flags.to_le_bytes());
        central.extend(record.method.to_le_bytes());
        central.extend([0; 4]);
        central.extend(crc.to_le_bytes());
        central.extend(record.central_compressed.unwrap_or(len).to_le_bytes());
        central.extend(record.central_size.unwrap_or(len).to_le_bytes());
        central.extend((record.name.len() as u16).to_le_bytes());
        central.extend((record.central_extra.len() as u16).to_le_bytes());
        central.extend((record.comment.len() as u16).to_le_bytes());
        central.extend(record.disk.to_le_bytes());
        central.extend([0; 6]);
        central.extend(record.start.unwrap_or(start).to_le_bytes());
        central.extend(record.name.as_bytes());
        central.extend(&record.central_extra);
        central.extend(&record.comment);
    }
    let offset = out.len() as u64;
    out.extend(&central);
    let after = out.len() as u64;
    let entries = records.len() as u64;
    if end.zip64 {
        out.extend(0x0606_4b50u32.to_le_bytes());
        out.extend(44u64.to_le_bytes());
        out.extend([0; 12]);
        out.extend(end.zip64_entries.unwrap_or(entries).to_le_bytes());
        out.extend(end.zip64_entries.unwrap_or(entries).to_le_bytes());
        out.extend(end.zip64_len.unwrap_or(central.len() as u64).to_le_bytes());
        out.extend(end.zip64_offset.unwrap_or(offset).to_le_bytes());
        out.extend(0x0706_4b50u32.to_le_bytes());
        out.extend([0; 4]);
        out.extend(end.locator.unwrap_or(after).to_le_bytes());
        out.extend(1u32.to_le_bytes());
    }
    out.extend(0x0605_4b50u32.to_le_bytes());
    out.extend(end.disk.to_le_bytes());
    out.extend(end.disk.to_le_bytes());
    let count = end.entries.unwrap_or(entries as u16);
    out.extend(count.to_le_bytes());
    out.extend(count.to_le_bytes());
    out.extend(end.len.unwrap_or(central.len() as u32).to_le_bytes());
    out.extend(end.offset.unwrap_or(offset as u32).to_le_bytes());
    out.extend((end.comment.len() as u16).to_le_bytes());
    out.extend(&end.comment);
    out.extend(&end.trailing);
    out
}

/// A pickle, operation by operation.
#[derive(Clone, Debug, Default)]
pub struct Pickler(pub Vec<u8>);

impl Pickler {
    pub fn new() -> Self {
        Self(vec![0x80, 2])
    }

    pub fn op(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.0.extend_from_slice(bytes.as_ref());
        self
    }

    pub fn str(self, text: &str) -> Self {
        let len = (text.len() as u32).to_le_bytes();
        self.op(b"X").op(len).op(text)
    }

    pub fn int(self, value: i64) -> Self {
        self.op([0x8a, 8]).op(value.to_le_bytes())
    }

    pub fn global(self, module: &str, name: &str) -> Self {
        self.op(format!("c{module}\n{name}\n"))
    }

    pub fn tuple(self, values: &[i64]) -> Self {
        values
            .iter()
            .fold(self.op(b"("), |p, &value| p.int(value))
            .op(b"t")
    }

    pub fn storage(self, class: &str, key: &str, numel: i64) -> Self {
        self.op(b"(")
            .str("storage")
            .global("torch", class)
            .str(key)
            .str("cpu")
            .int(numel)
            .op(b"tQ")
    }

    pub fn tensor(self, tensor: &View) -> Self {
        self.global("torch._utils", "_rebuild_tensor_v2")
            .op(b"(")
            .storage(tensor.class, &tensor.key, tensor.numel)
            .int(tensor.offset)
            .tuple(&tensor.shape)
            .tuple(&tensor.strides)
            .op([0x89])
            .global("collections", "OrderedDict")
            .op(b")RtR")
    }

    pub fn stop(self) -> Vec<u8> {
        self.op(b".").0
    }
}

/// A tensor as a pickle describes it.
#[derive(Clone, Debug)]
pub struct View {
    pub class: &'static str,
    pub key: String,
    pub numel: i64,
    pub offset: i64,
    pub shape: Vec<i64>,
    pub strides: Vec<i64>,
}

impl View {
    pub fn contiguous(class: &'static str, key: &str, shape: &[i64]) -> Self {
        let mut strides = vec![1; shape.len()];
        for dim in (1..shape.len()).rev() {
            strides[dim - 1] = strides[dim] * shape[dim];
        }
        Self {
            class,
            key: key.into(),
            numel: shape.iter().product(),
            offset: 0,
            shape: shape.into(),
            strides,
        }
    }
}

pub fn storage_class(dtype: StoredType) -> &'static str {
    match dtype {
        StoredType::F32 => "FloatStorage",
        StoredType::F16 => "HalfStorage",
        StoredType::BF16 => "BFloat16Storage",
        StoredType::F64 => "DoubleStorage",
        StoredType::I64 => "LongStorage",
        other => panic!("no writer for {other}"),
    }
}

/// `{"task": {name: tensor, ...}}` as a pickle.
pub fn state_pickle(tensors: &[(&str, View)]) -> Vec<u8> {
    let start = Pickler::new().op(b"}(").str("task").op(b"}(");
    tensors
        .iter()
        .fold(start, |pickle, (name, view)| pickle.str(name).tensor(view))
        .op(b"uu")
        .stop()
}

/// The records of an archive with this pickle and these storages.
pub fn records(pickle: Vec<u8>, storages: &[(&str, Vec<u8>)]) -> Vec<ZipRecord> {
    let mut records = vec![
        ZipRecord::new("model/data.pkl", pickle),
        ZipRecord::new("model/byteorder", *b"little"),
    ];
    for (key, data) in storages {
        records.push(ZipRecord::new(format!("model/data/{key}"), data.clone()));
    }
    records.push(ZipRecord::new("model/version", *b"3\n"));
    for record in &mut records {
        record.descriptor = true;
    }
    records
}

/// A whole archive.
pub fn pth(pickle: Vec<u8>, storages: &[(&str, Vec<u8>)]) -> Vec<u8> {
    zip(
        &records(pickle, storages),
        &ZipEnd {
            zip64: true,
            ..ZipEnd::default()
        },
    )
}

/// A safetensors file with this header.
pub fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

/// A safetensors file of f32 tensors.
pub fn f32_safetensors(tensors: &[(&str, &[usize])]) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape) in tensors {
        let start = data.len();
        let numel: usize = shape.iter().product();
        data.extend((0..numel).flat_map(|i| ((i % 97) as f32 * 0.25 - 8.0).to_le_bytes()));
        header.insert(
            (*name).to_owned(),
            serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]}),
        );
    }
    safetensors(&serde_json::Value::Object(header).to_string(), &data)
}
