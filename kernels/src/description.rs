//! What a library of RAT+ operators says of itself.

use ratplus_graphs::ops::{DOMAIN, DOMAIN_VERSION, ElementType, Op, PortType};
use serde_json::{Map, Value, json};

/// A JSON object: `library`, `version`, `build_id`, `domain`, `operators` with their types, `cpu_kernels`, `cuda`
/// with the compute capabilities of the embedded code, and what the host adapter adds.
pub fn describe(library: &str, version: &str, operators: &[Op], host: Value) -> String {
    let mut own = Map::new();
    own.insert("library".into(), library.into());
    own.insert("version".into(), version.into());
    own.insert("build_id".into(), build_id().into());
    own.insert("domain".into(), DOMAIN.into());
    own.insert("domain_version".into(), DOMAIN_VERSION.into());
    let operators = operators.iter().map(|&op| operator(op));
    own.insert("operators".into(), operators.collect());
    own.insert("cpu_kernels".into(), crate::isa().to_string().into());
    own.insert("cuda".into(), cuda());
    if let Value::Object(host) = host {
        own.extend(host);
    }
    Value::Object(own).to_string()
}

fn operator(op: Op) -> Value {
    let types = ElementType::ACTIVATIONS.map(|dtype| dtype.to_string());
    let cached = op.inputs().iter().any(|port| port.dtype == PortType::C);
    match cached {
        true => json!({ "name": op.name(), "types": types, "cache_types": types }),
        false => json!({ "name": op.name(), "types": types }),
    }
}

/// What the kernels for GPUs were compiled for; an empty list is left to NVRTC, and null has no kernels.
#[cfg(feature = "cuda")]
fn cuda() -> Value {
    let toolkit = crate::cuda::toolkit();
    json!({
        "toolkit": toolkit.map(|toolkit| toolkit.version),
        "compute_capabilities": toolkit.map_or(&[][..], |toolkit| toolkit.architectures),
    })
}

#[cfg(not(feature = "cuda"))]
fn cuda() -> Value {
    Value::Null
}

/// The id that the linker gave the file that this code was loaded from, in hexadecimal; `None` where it
/// gave none.
#[cfg(target_os = "linux")]
fn build_id() -> Option<String> {
    use libc::{PT_LOAD, PT_NOTE, c_int, c_void, dl_phdr_info, size_t};
    use std::slice::from_raw_parts;

    struct Search {
        address: usize,
        id: Option<String>,
    }

    /// # Safety
    /// As `dl_iterate_phdr` calls it, with a [`Search`].
    unsafe extern "C" fn visit(info: *mut dl_phdr_info, _: size_t, search: *mut c_void) -> c_int {
        // SAFETY: the caller's contract: both are valid and nobody else's during the call, and the
        // headers are as many as it says.
        let (base, headers, search) = unsafe {
            let info = &*info;
            let headers = from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into());
            (
                info.dlpi_addr as usize,
                headers,
                &mut *search.cast::<Search>(),
            )
        };
        let holds = headers.iter().any(|header| {
            let start = base.wrapping_add(header.p_vaddr as usize);
            let within = search.address.wrapping_sub(start);
            header.p_type == PT_LOAD && within < header.p_memsz as usize
        });
        if !holds {
            return 0;
        }
        search.id = headers
            .iter()
            .filter(|header| header.p_type == PT_NOTE)
            .find_map(|header| {
                let start = base.wrapping_add(header.p_vaddr as usize) as *const u8;
                // SAFETY: a segment of a loaded file is mapped at its address, for as long as the file is:
                // this code is in it.
                let notes = unsafe { from_raw_parts(start, header.p_memsz as usize) };
                gnu_build_id(notes, header.p_align as usize)
            });
        1
    }

    let mut search = Search {
        address: build_id as *const () as usize,
        id: None,
    };
    // SAFETY: `search` outlives the call, which keeps nothing.
    unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut search).cast()) };
    search.id
}

#[cfg(not(target_os = "linux"))]
fn build_id() -> Option<String> {
    None
}

/// The build id among a segment's notes, each of which has a name and a description padded to `align`.
fn gnu_build_id(mut notes: &[u8], align: usize) -> Option<String> {
    const NT_GNU_BUILD_ID: u32 = 3;
    let align = if align == 8 { 8 } else { 4 };
    loop {
        let (header, rest) = notes.split_first_chunk::<12>()?;
        let word = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let [name_len, id_len] = [word(0), word(4)].map(|length| length as usize);
        // The header's 12 bytes count for the name's padding.
        let start = (12 + name_len).next_multiple_of(align) - 12;
        let name = rest.get(..name_len)?;
        let id = rest.get(start..start.checked_add(id_len)?)?;
        if word(8) == NT_GNU_BUILD_ID && name == b"GNU\0" {
            return Some(id.iter().map(|byte| format!("{byte:02x}")).collect());
        }
        notes = rest.get(start + id_len.next_multiple_of(align)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(kind: u32, name: &[u8], description: &[u8], align: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [name.len() as u32, description.len() as u32, kind] {
            bytes.extend(word.to_le_bytes());
        }
        for part in [name, description] {
            bytes.extend(part);
            bytes.resize(bytes.len().next_multiple_of(align), 0);
        }
        bytes
    }

    #[test]
    fn the_build_id_is_found_among_other_notes() {
        for align in [4, 8] {
            let mut notes = note(5, b"GNU\0", &[1; 5], align);
            notes.extend(note(3, b"Go\0", &[2; 3], align));
            notes.extend(note(3, b"GNU\0", &[0xab, 0, 0x7f], align));
            assert_eq!(gnu_build_id(&notes, align).as_deref(), Some("ab007f"));
            for cut in 0..notes.len() - align {
                assert_eq!(gnu_build_id(&notes[..cut], align), None, "{cut}");
            }
        }
    }

    #[test]
    fn a_library_names_its_operators_and_what_the_host_adds() {
        let text = describe("here", "1.2.3", &Op::ALL, json!({ "providers": ["P"] }));
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["version"], "1.2.3");
        assert_eq!(value["providers"][0], "P");
        let operators = value["operators"].as_array().unwrap();
        assert_eq!(operators.len(), Op::ALL.len());
        let attention = operators
            .iter()
            .find(|op| op["name"] == "DilatedAttention")
            .unwrap();
        assert_eq!(attention["cache_types"], json!(["f32", "f16", "bf16"]));
        #[cfg(target_os = "linux")]
        assert!(value["build_id"].as_str().unwrap().len() >= 16, "{text}");
    }
}
