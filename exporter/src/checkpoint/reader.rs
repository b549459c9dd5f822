//! Streams tensors out of a checkpoint through a buffer of the caller's.

use super::cast::{self, Found};
use super::error::{CheckpointError, Fail};
use super::source::Source;
use super::tensor::{Tensor, contiguous_from};
use super::{Checkpoint, Record};
use ratplus_graphs::ops::ElementType;
use std::ops::Range;
use std::sync::atomic::Ordering;

/// Bytes read at a time where elements have to be converted or gathered.
const PIECE: usize = 256 << 10;

/// Elements further apart than this many bytes are read one by one.
const SPARSE: u64 = 4096;

/// How weights are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReadOptions {
    /// Hand out NaNs and infinities as they are stored instead of refusing them.
    pub allow_nonfinite: bool,
}

/// Reads tensors of one [`Checkpoint`]. Holds at most a few hundred kilobytes, whatever the
/// model, plus a staging copy of the rows asked for where a tensor is not contiguous and has to
/// be converted.
///
/// Checksums: where the archive has them, a tensor read in order from its first row to its last
/// is checked on the way, and its last read fails if the record is damaged. Any other order, and
/// a tensor that is a part or a rearrangement of its record, makes the reader check the whole
/// record first.
#[derive(Debug)]
pub struct Reader<'a> {
    checkpoint: &'a Checkpoint,
    options: ReadOptions,
    scratch: Vec<u8>,
    staging: Vec<u8>,
    running: Option<Running>,
}

/// A checksum under way.
#[derive(Debug)]
struct Running {
    record: usize,
    /// Bytes of the record hashed.
    done: u64,
    hasher: crc32fast::Hasher,
}

impl<'a> Reader<'a> {
    pub(super) fn new(checkpoint: &'a Checkpoint, options: ReadOptions) -> Self {
        Self {
            checkpoint,
            options,
            scratch: Vec::new(),
            staging: Vec::new(),
            running: None,
        }
    }

    /// Writes `rows` of `tensor` to `out` as little-endian elements of type `dtype`, row-major.
    /// Where type and order are the stored ones this is one read straight into `out`.
    ///
    /// # Errors
    /// The file cannot be read or is damaged; a value is not finite, or not in the range of
    /// `dtype`; the tensor is not made of floats; `rows` or the length of `out`, which has to be
    /// `rows.len() * tensor.row_len() * dtype.size()`, do not fit. `out` then holds nothing of use.
    pub fn read_rows(
        &mut self,
        tensor: &Tensor,
        rows: Range<usize>,
        dtype: ElementType,
        out: &mut [u8],
    ) -> Result<(), CheckpointError> {
        let request = |problem| CheckpointError::Request {
            tensor: tensor.name.clone(),
            problem,
        };
        if !tensor.dtype.is_weight() {
            return Err(request(format!(
                "expected f32, f16, bf16 or f64 elements, found {}",
                tensor.dtype
            )));
        }
        if !ElementType::ACTIVATIONS.contains(&dtype) {
            return Err(request(format!(
                "expected f32, f16 or bf16 as the target, found {dtype}"
            )));
        }
        if rows.start > rows.end || rows.end > tensor.rows() {
            return Err(request(format!(
                "expected rows within 0..{}, found {rows:?}",
                tensor.rows()
            )));
        }
        let expected = rows
            .len()
            .checked_mul(tensor.row_len())
            .and_then(|elements| elements.checked_mul(dtype.size()));
        if expected != Some(out.len()) {
            return Err(request(format!(
                "expected a buffer of {expected:?} bytes for rows {rows:?}, found {}",
                out.len()
            )));
        }
        let first = rows.start.saturating_mul(tensor.row_len());
        let found = if tensor.is_contiguous() {
            self.contiguous(tensor, first, dtype, out)?
        } else {
            self.check_record(tensor)?;
            self.strided(tensor, rows, dtype, out)?
        };
        match found {
            None => Ok(()),
            Some(Found::NonFinite { index, value }) => Err(CheckpointError::NonFinite {
                path: self.path(tensor),
                tensor: tensor.name.clone(),
                index: unflatten(first + index, &tensor.shape),
                value,
            }),
            Some(Found::Overflow { index, value }) => Err(CheckpointError::Overflow {
                path: self.path(tensor),
                tensor: tensor.name.clone(),
                index: unflatten(first + index, &tensor.shape),
                value,
                dtype,
            }),
        }
    }

    fn path(&self, tensor: &Tensor) -> std::path::PathBuf {
        self.checkpoint.files[tensor.file].path.clone()
    }

    fn read_at(&self, tensor: &Tensor, offset: u64, out: &mut [u8]) -> Result<(), CheckpointError> {
        let file = &self.checkpoint.files[tensor.file];
        file.source
            .read_exact_at(out, offset)
            .map_err(|error| Fail::io("read", error).at(&file.path))
    }

    fn contiguous(
        &mut self,
        tensor: &Tensor,
        first: usize,
        dtype: ElementType,
        out: &mut [u8],
    ) -> Result<Option<Found>, CheckpointError> {
        let stored = tensor.dtype;
        let start = first as u64 * stored.size() as u64;
        let bytes = (out.len() / dtype.size()) as u64 * stored.size() as u64;
        let streaming = self.begin(tensor, start, bytes)?;
        if stored.element_type() == Some(dtype) {
            self.read_at(tensor, tensor.offset + start, out)?;
            if let Some(running) = self.running.as_mut().filter(|_| streaming) {
                running.hasher.update(out);
            }
            self.finish(streaming)?;
            return Ok(cast::refuse_non_finite(
                out,
                dtype,
                self.options.allow_nonfinite,
            ));
        }
        let per_piece = PIECE / stored.size();
        let elements = per_piece.min(out.len() / dtype.size());
        self.scratch.resize(elements * stored.size(), 0);
        let mut found = None;
        for (piece, out) in out.chunks_mut(per_piece * dtype.size()).enumerate() {
            let scratch = &mut self.scratch[..out.len() / dtype.size() * stored.size()];
            let offset = tensor.offset + start + (piece * PIECE) as u64;
            let file = &self.checkpoint.files[tensor.file];
            file.source
                .read_exact_at(scratch, offset)
                .map_err(|error| Fail::io("read", error).at(&file.path))?;
            if let Some(running) = self.running.as_mut().filter(|_| streaming) {
                running.hasher.update(scratch);
            }
            if found.is_none() {
                found = cast::convert(scratch, stored, out, dtype, self.options.allow_nonfinite)
                    .map(|found| found.shifted(piece * per_piece));
            }
        }
        self.finish(streaming)?;
        Ok(found)
    }

    /// Whether the coming read of a whole-record tensor continues its checksum; otherwise the
    /// record has been checked when this returns.
    fn begin(&mut self, tensor: &Tensor, start: u64, bytes: u64) -> Result<bool, CheckpointError> {
        let Some((index, record)) = self.record(tensor) else {
            return Ok(false);
        };
        let size = tensor.dtype.size() as u64;
        if tensor.numel() as u64 * size != record.len {
            return self.check_record(tensor).map(|()| false);
        }
        if start == 0 {
            self.running = Some(Running {
                record: index,
                done: 0,
                hasher: crc32fast::Hasher::new(),
            });
        }
        match &mut self.running {
            Some(running) if running.record == index && running.done == start => {
                running.done += bytes;
                Ok(true)
            }
            _ => self.check_record(tensor).map(|()| false),
        }
    }

    fn finish(&mut self, streaming: bool) -> Result<(), CheckpointError> {
        let Some(running) = self.running.take_if(|running| {
            streaming && running.done == self.checkpoint.contents.records[running.record].len
        }) else {
            return Ok(());
        };
        self.conclude(
            &self.checkpoint.contents.records[running.record],
            running.hasher,
        )
    }

    fn conclude(&self, record: &Record, hasher: crc32fast::Hasher) -> Result<(), CheckpointError> {
        let found = hasher.finalize();
        if found == record.crc {
            record.verified.store(true, Ordering::Relaxed);
            return Ok(());
        }
        Err(CheckpointError::Checksum {
            path: self.checkpoint.files[record.file].path.clone(),
            record: record.name.clone(),
            expected: record.crc,
            found,
        })
    }

    /// The record behind `tensor` if it has a checksum that is still to be checked.
    fn record(&self, tensor: &Tensor) -> Option<(usize, &'a Record)> {
        let index = tensor.record?;
        let record = &self.checkpoint.contents.records[index];
        (record.crc != 0 && !record.verified.load(Ordering::Relaxed)).then_some((index, record))
    }

    /// Reads the whole record behind `tensor` against its checksum, once.
    fn check_record(&mut self, tensor: &Tensor) -> Result<(), CheckpointError> {
        let Some((_, record)) = self.record(tensor) else {
            return Ok(());
        };
        let file = &self.checkpoint.files[record.file];
        let found = hash_range(
            file.source.as_ref(),
            record.offset,
            record.len,
            &mut self.scratch,
        )
        .map_err(|fail| fail.at(&file.path))?;
        self.conclude(record, found)
    }

    fn strided(
        &mut self,
        tensor: &Tensor,
        rows: Range<usize>,
        dtype: ElementType,
        out: &mut [u8],
    ) -> Result<Option<Found>, CheckpointError> {
        let stored = tensor.dtype;
        if stored.element_type() == Some(dtype) {
            self.gather(tensor, rows, out)?;
            return Ok(cast::refuse_non_finite(
                out,
                dtype,
                self.options.allow_nonfinite,
            ));
        }
        let mut staging = std::mem::take(&mut self.staging);
        staging.resize(out.len() / dtype.size() * stored.size(), 0);
        let result = self.gather(tensor, rows, &mut staging);
        let found = result
            .map(|()| cast::convert(&staging, stored, out, dtype, self.options.allow_nonfinite));
        self.staging = staging;
        found
    }

    /// Copies `rows` in row-major order, as stored. Along the dimension whose elements lie
    /// closest together each read covers as many of them as a piece holds.
    fn gather(
        &mut self,
        tensor: &Tensor,
        rows: Range<usize>,
        out: &mut [u8],
    ) -> Result<(), CheckpointError> {
        if out.is_empty() {
            return Ok(());
        }
        let size = tensor.dtype.size();
        let mut shape = tensor.shape.clone();
        shape[0] = rows.len();
        // Element strides of the output.
        let mut out_strides = vec![1usize; shape.len()];
        for dim in (1..shape.len()).rev() {
            out_strides[dim - 1] = out_strides[dim] * shape[dim];
        }
        let origin = rows.start as u64 * tensor.strides[0];
        // The inner dimensions that are in order count as one, `run` elements long.
        let inner = contiguous_from(&shape, &tensor.strides);
        let run: usize = shape[inner..].iter().product();
        let outer: Vec<usize> = (0..inner).filter(|&dim| shape[dim] > 1).collect();
        let along = if run > 1 {
            None
        } else {
            outer
                .iter()
                .copied()
                .filter(|&dim| tensor.strides[dim] > 0)
                .min_by_key(|&dim| tensor.strides[dim])
        };
        let (count, step, out_step) = match along {
            Some(dim) => (shape[dim], tensor.strides[dim], out_strides[dim]),
            None => (run, 1, 1),
        };
        let others: Vec<usize> = outer
            .into_iter()
            .filter(|&dim| Some(dim) != along)
            .collect();
        let mut index = vec![0usize; others.len()];
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.resize(PIECE, 0);
        let result = loop {
            let (mut from, mut to) = (origin, 0);
            for (&dim, &at) in others.iter().zip(&index) {
                from += at as u64 * tensor.strides[dim];
                to += at * out_strides[dim];
            }
            let line = Line {
                from,
                count,
                step,
                to,
                out_step,
                size,
            };
            if let Err(error) = self.gather_line(tensor, line, out, &mut scratch) {
                break Err(error);
            }
            let Some(next) = (0..others.len())
                .rev()
                .find(|&i| index[i] + 1 < shape[others[i]])
            else {
                break Ok(());
            };
            index[next] += 1;
            index[next + 1..].fill(0);
        };
        self.scratch = scratch;
        result
    }

    fn gather_line(
        &self,
        tensor: &Tensor,
        line: Line,
        out: &mut [u8],
        scratch: &mut [u8],
    ) -> Result<(), CheckpointError> {
        let Line {
            from,
            count,
            step,
            to,
            out_step,
            size,
        } = line;
        let at = |element: u64| tensor.offset + element * size as u64;
        if step == 1 && out_step == 1 {
            return self.read_at(tensor, at(from), &mut out[to * size..][..count * size]);
        }
        let per_read = if step.saturating_mul(size as u64) > SPARSE {
            1
        } else {
            (PIECE / size - 1) / step as usize + 1
        };
        for first in (0..count).step_by(per_read) {
            let len = per_read.min(count - first);
            let span = ((len - 1) * step as usize + 1) * size;
            let piece = &mut scratch[..span];
            self.read_at(tensor, at(from + first as u64 * step), piece)?;
            for (i, element) in piece.chunks(step as usize * size).enumerate() {
                let target = (to + (first + i) * out_step) * size;
                out[target..target + size].copy_from_slice(&element[..size]);
            }
        }
        Ok(())
    }
}

/// `count` elements, `step` apart in the file and `out_step` apart in the output.
struct Line {
    from: u64,
    count: usize,
    step: u64,
    to: usize,
    out_step: usize,
    size: usize,
}

/// CRC-32 of a range, read piece by piece.
pub(super) fn hash_range(
    source: &dyn Source,
    offset: u64,
    len: u64,
    scratch: &mut Vec<u8>,
) -> Result<crc32fast::Hasher, Fail> {
    scratch.resize(len.min(PIECE as u64) as usize, 0);
    let mut hasher = crc32fast::Hasher::new();
    let mut done = 0;
    while done < len {
        let piece = &mut scratch[..(len - done).min(PIECE as u64) as usize];
        source
            .read_exact_at(piece, offset + done)
            .map_err(|error| Fail::io("read", error))?;
        hasher.update(piece);
        done += piece.len() as u64;
    }
    Ok(hasher)
}

/// Coordinates of element `index` of a row-major tensor.
fn unflatten(mut index: usize, shape: &[usize]) -> Vec<usize> {
    let mut coordinates = vec![0; shape.len()];
    for (slot, &dim) in coordinates.iter_mut().zip(shape).rev() {
        *slot = index % dim.max(1);
        index /= dim.max(1);
    }
    coordinates
}
