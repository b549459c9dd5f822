//! The zip archives `torch.save` writes, and no others: stored entries, zip64 or not, local and
//! central headers that agree, nothing that overlaps, nothing after the end.

use super::error::{Fail, show};
use super::source::{Source, read_vec};
use std::collections::HashSet;

const LOCAL_HEADER: u32 = 0x0403_4b50;
const CENTRAL_HEADER: u32 = 0x0201_4b50;
const DESCRIPTOR: u32 = 0x0807_4b50;
const END: u32 = 0x0605_4b50;
const END64: u32 = 0x0606_4b50;
const LOCATOR64: u32 = 0x0706_4b50;

const END_LEN: u64 = 22;
const END64_LEN: u64 = 56;
const LOCATOR64_LEN: u64 = 20;
const CENTRAL_LEN: usize = 46;
const LOCAL_LEN: u64 = 30;

/// Sizes and checksum follow the data.
const FLAG_DESCRIPTOR: u16 = 1 << 3;
/// Names are UTF-8.
const FLAG_UTF8: u16 = 1 << 11;

const MAX_CENTRAL_DIRECTORY: u64 = 64 << 20;
const SENTINEL32: u64 = 0xffff_ffff;

/// One stored file of the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub name: String,
    /// First byte of the data in the archive.
    pub offset: u64,
    /// Bytes of data.
    pub len: u64,
    /// CRC-32 of the data; 0 where the writer did not compute it.
    pub crc: u32,
}

fn bad<T>(problem: impl std::fmt::Display) -> Result<T, Fail> {
    Err(Fail::malformed("zip archive", problem))
}

/// Little-endian fields of a header already read.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, len: usize) -> Result<&'a [u8], Fail> {
        match self.0.split_at_checked(len) {
            Some((head, tail)) => {
                self.0 = tail;
                Ok(head)
            }
            None => bad("a header ends too early"),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fail> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    fn u16(&mut self) -> Result<u16, Fail> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, Fail> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Fail> {
        Ok(u64::from_le_bytes(self.array()?))
    }
}

struct CentralDirectory {
    offset: u64,
    len: u64,
    entries: u64,
}

fn central_directory(source: &dyn Source) -> Result<CentralDirectory, Fail> {
    let len = source.len();
    if len < END_LEN {
        return bad(format!(
            "{len} bytes are too few; the file is not a zip archive or was cut short"
        ));
    }
    let end = len - END_LEN;
    let bytes = read_vec(source, end, END_LEN as usize)?;
    let mut fields = Fields(&bytes);
    if fields.u32()? != END {
        return bad(
            "no end record in the last 22 bytes; the file was cut short or has data after its end",
        );
    }
    let disks = [fields.u16()?, fields.u16()?];
    let counts = [fields.u16()?, fields.u16()?];
    let [size, offset] = [fields.u32()?, fields.u32()?];
    if disks != [0, 0] || counts[0] != counts[1] {
        return bad("it spans several disks");
    }
    if fields.u16()? != 0 {
        return bad("it has a comment, expected none");
    }
    let short = CentralDirectory {
        offset: offset.into(),
        len: size.into(),
        entries: counts[0].into(),
    };
    let (found, limit) = match central_directory64(source, end)? {
        Some((long, limit)) => {
            let pairs = [
                (short.offset, long.offset, SENTINEL32),
                (short.len, long.len, SENTINEL32),
                (short.entries, long.entries, 0xffff),
            ];
            if pairs
                .iter()
                .any(|&(short, long, sentinel)| short != long && short != sentinel)
            {
                return bad("its end record and zip64 end record disagree");
            }
            (long, limit)
        }
        None => (short, end),
    };
    if found.len > MAX_CENTRAL_DIRECTORY {
        return bad(format!("a central directory of {} bytes", found.len));
    }
    if found.offset.checked_add(found.len) != Some(limit) {
        return bad("the central directory does not end where the end record starts");
    }
    Ok(found)
}

fn central_directory64(
    source: &dyn Source,
    end: u64,
) -> Result<Option<(CentralDirectory, u64)>, Fail> {
    let Some(locator) = end.checked_sub(LOCATOR64_LEN) else {
        return Ok(None);
    };
    let bytes = read_vec(source, locator, LOCATOR64_LEN as usize)?;
    let mut fields = Fields(&bytes);
    if fields.u32()? != LOCATOR64 {
        return Ok(None);
    }
    let (disk, start, disks) = (fields.u32()?, fields.u64()?, fields.u32()?);
    if disk != 0 || disks != 1 || start.checked_add(END64_LEN) != Some(locator) {
        return bad("the zip64 locator does not point at the record before it");
    }
    let bytes = read_vec(source, start, END64_LEN as usize)?;
    let mut fields = Fields(&bytes);
    if fields.u32()? != END64 || fields.u64()? != END64_LEN - 12 {
        return bad("no zip64 end record where the locator points");
    }
    let _versions = fields.u32()?;
    let disks = [fields.u32()?, fields.u32()?];
    let counts = [fields.u64()?, fields.u64()?];
    if disks != [0, 0] || counts[0] != counts[1] {
        return bad("it spans several disks");
    }
    let (len, offset) = (fields.u64()?, fields.u64()?);
    Ok(Some((
        CentralDirectory {
            offset,
            len,
            entries: counts[0],
        },
        start,
    )))
}

fn check_name(bytes: &[u8]) -> Result<&str, Fail> {
    let unsafe_name = || format!("unsafe record name `{}`", show(bytes));
    let name =
        std::str::from_utf8(bytes).map_err(|_| Fail::malformed("zip archive", unsafe_name()))?;
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    if name.contains(['\\', '\0', ':']) || !name.split('/').all(plain) {
        return bad(unsafe_name());
    }
    Ok(name)
}

/// The zip64 values of the extra fields, in order, as many as were asked for.
fn zip64_values(extra: &[u8], wanted: usize, name: &str) -> Result<Vec<u64>, Fail> {
    let mut fields = Fields(extra);
    let mut values = None;
    while !fields.0.is_empty() {
        let (id, len) = (fields.u16()?, fields.u16()?);
        let body = fields.bytes(len.into())?;
        if id == 1 && values.replace(body).is_some() {
            return bad(format!("record `{name}` has two zip64 fields"));
        }
    }
    let Some(body) = values else {
        return match wanted {
            0 => Ok(Vec::new()),
            _ => bad(format!("record `{name}` lacks its zip64 field")),
        };
    };
    let mut fields = Fields(body);
    (0..wanted).map(|_| fields.u64()).collect()
}

struct Central {
    entry: Entry,
    flags: u16,
    /// Offset of the local header.
    start: u64,
}

fn central_entry(fields: &mut Fields<'_>) -> Result<Central, Fail> {
    if fields.u32()? != CENTRAL_HEADER {
        return bad("the central directory holds something that is not a header");
    }
    fields.bytes(4)?; // versions
    let (flags, method) = (fields.u16()?, fields.u16()?);
    fields.bytes(4)?; // time
    let crc = fields.u32()?;
    let [compressed, size] = [u64::from(fields.u32()?), u64::from(fields.u32()?)];
    let [name_len, extra_len, comment_len] = [fields.u16()?, fields.u16()?, fields.u16()?];
    let disk = fields.u16()?;
    fields.bytes(6)?; // attributes
    let start = u64::from(fields.u32()?);
    let name = check_name(fields.bytes(name_len.into())?)?;
    let extra = fields.bytes(extra_len.into())?;
    let shown = show(name.as_bytes());
    if comment_len != 0 || disk != 0 {
        return bad(format!("record `{shown}` has a comment or another disk"));
    }
    if flags & !(FLAG_DESCRIPTOR | FLAG_UTF8) != 0 {
        return bad(format!(
            "record `{shown}` has flags {flags:#06x}, expected only 0x0008 and 0x0800"
        ));
    }
    if method != 0 {
        return bad(format!(
            "record `{shown}` is compressed (method {method}), expected stored as torch.save writes it"
        ));
    }
    let sentinels = [size, compressed, start].map(|value| value == SENTINEL32);
    let wanted = sentinels.iter().filter(|&&sentinel| sentinel).count();
    let mut long = zip64_values(extra, wanted, &shown)?.into_iter();
    let mut pick = |value: u64, sentinel: bool| {
        if sentinel {
            long.next().unwrap_or(value)
        } else {
            value
        }
    };
    let size = pick(size, sentinels[0]);
    let compressed = pick(compressed, sentinels[1]);
    let start = pick(start, sentinels[2]);
    if size != compressed {
        return bad(format!(
            "record `{shown}` is stored, yet {size} bytes long and {compressed} bytes in the archive"
        ));
    }
    Ok(Central {
        entry: Entry {
            name: name.to_owned(),
            offset: 0,
            len: size,
            crc,
        },
        flags,
        start,
    })
}

/// Checks the local header, finds the data, and returns where the record ends.
fn local_entry(source: &dyn Source, central: &mut Central, limit: u64) -> Result<u64, Fail> {
    let entry = &mut central.entry;
    let shown = show(entry.name.as_bytes());
    let outside = || format!("record `{shown}` does not lie before the central directory");
    let fits = |end: Option<u64>| match end {
        Some(end) if end <= limit => Ok(end),
        _ => bad(outside()),
    };
    let name_start = fits(central.start.checked_add(LOCAL_LEN))?;
    let bytes = read_vec(source, central.start, LOCAL_LEN as usize)?;
    let mut fields = Fields(&bytes);
    if fields.u32()? != LOCAL_HEADER {
        return bad(format!("no local header for record `{shown}`"));
    }
    fields.bytes(2)?; // version
    let (flags, method) = (fields.u16()?, fields.u16()?);
    fields.bytes(4)?; // time
    let crc = fields.u32()?;
    let sizes = [u64::from(fields.u32()?), u64::from(fields.u32()?)];
    let (name_len, extra_len) = (fields.u16()?, fields.u16()?);
    let extra_start = fits(name_start.checked_add(name_len.into()))?;
    entry.offset = fits(extra_start.checked_add(extra_len.into()))?;
    let end = fits(entry.offset.checked_add(entry.len))?;
    let tail = read_vec(
        source,
        name_start,
        usize::from(name_len) + usize::from(extra_len),
    )?;
    let (name, extra) = tail.split_at(name_len.into());
    let described = flags & FLAG_DESCRIPTOR != 0;
    let later = described && crc == 0 && sizes == [0, 0];
    let long = sizes.contains(&SENTINEL32);
    let sizes = if long {
        let mut values = zip64_values(
            extra,
            sizes.iter().filter(|&&s| s == SENTINEL32).count(),
            &shown,
        )?
        .into_iter();
        sizes.map(|size| {
            if size == SENTINEL32 {
                values.next().unwrap_or(size)
            } else {
                size
            }
        })
    } else {
        sizes
    };
    let agrees = later
        || sizes == [entry.len; 2] && crc == entry.crc
        || described && crc == 0 && sizes == [entry.len; 2];
    if name != entry.name.as_bytes() || flags != central.flags || method != 0 || !agrees {
        return bad(format!(
            "the local and the central header of record `{shown}` disagree"
        ));
    }
    if described {
        descriptor(source, entry, end, limit)
    } else {
        Ok(end)
    }
}

fn descriptor(source: &dyn Source, entry: &Entry, start: u64, limit: u64) -> Result<u64, Fail> {
    for long in [false, true] {
        let len = if long { 24 } else { 16 };
        let Some(end) = start.checked_add(len).filter(|&end| end <= limit) else {
            continue;
        };
        let bytes = read_vec(source, start, len as usize)?;
        let mut fields = Fields(&bytes);
        let mut agrees = fields.u32()? == DESCRIPTOR && fields.u32()? == entry.crc;
        for _ in 0..2 {
            let size = if long {
                fields.u64()?
            } else {
                fields.u32()?.into()
            };
            agrees &= size == entry.len;
        }
        if agrees {
            return Ok(end);
        }
    }
    bad(format!(
        "the descriptor after record `{}` disagrees with its header",
        show(entry.name.as_bytes())
    ))
}

/// Every record, in the order of the central directory.
pub(super) fn entries(source: &dyn Source) -> Result<Vec<Entry>, Fail> {
    let directory = central_directory(source)?;
    let bytes = read_vec(source, directory.offset, directory.len as usize)?;
    if directory
        .entries
        .checked_mul(CENTRAL_LEN as u64)
        .is_none_or(|least| least > directory.len)
    {
        return bad(format!(
            "{} records do not fit its central directory",
            directory.entries
        ));
    }
    let mut fields = Fields(&bytes);
    let mut found = Vec::with_capacity(directory.entries as usize);
    let mut names = HashSet::new();
    let mut spans = Vec::with_capacity(directory.entries as usize);
    for _ in 0..directory.entries {
        let mut central = central_entry(&mut fields)?;
        let end = local_entry(source, &mut central, directory.offset)?;
        spans.push((central.start, end, found.len()));
        if !names.insert(central.entry.name.clone()) {
            return bad(format!(
                "two records are named `{}`",
                show(central.entry.name.as_bytes())
            ));
        }
        found.push(central.entry);
    }
    if !fields.0.is_empty() {
        return bad("the central directory is longer than its records");
    }
    spans.sort_unstable();
    for pair in spans.windows(2) {
        let [(_, end, first), (start, _, second)] = [pair[0], pair[1]];
        if start < end {
            return bad(format!(
                "records `{}` and `{}` overlap",
                show(found[first].name.as_bytes()),
                show(found[second].name.as_bytes())
            ));
        }
    }
    Ok(found)
}
