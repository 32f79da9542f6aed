//! What a program file says of the libraries that it links: `DT_NEEDED`, `DT_RPATH`/`DT_RUNPATH` and the interpreter.
//!
//! Read from the file, not asked of `ldd`, which may run the program. Only 64-bit little-endian ELF, the machines that
//! Roost runs on. The input is a file that somebody installed: every offset is checked.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// How many entries of a table are looked at.
const MAX_ENTRIES: u64 = 4096;
/// The longest text, in bytes.
const MAX_TEXT: usize = 4096;

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const DT_NULL: u64 = 0;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const DT_RPATH: u64 = 15;
const DT_RUNPATH: u64 = 29;

/// What is linked by one program or library.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Links {
    /// Names of the libraries that it needs, in order.
    pub(super) needed: Vec<String>,
    /// Directories to look for them first, `$ORIGIN` not yet replaced.
    pub(super) search: Vec<String>,
    /// The program that loads it; a library has none.
    pub(super) interpreter: Option<String>,
}

struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    size: u64,
}

/// Reads the links of an ELF file.
pub(super) fn links(file: &File) -> io::Result<Links> {
    read(file)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a 64-bit little-endian ELF file"))
}

fn read(file: &File) -> Option<Links> {
    if &bytes_at::<6>(file, 0)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let segments = segments(file)?;
    let mut links = Links::default();
    if let Some(interp) = segments.iter().find(|segment| segment.kind == PT_INTERP) {
        links.interpreter = Some(text(file, interp.offset)?);
    }
    let Some(dynamic) = segments.iter().find(|segment| segment.kind == PT_DYNAMIC) else {
        return Some(links);
    };

    let entries: Vec<(u64, u64)> = (0..(dynamic.size / 16).min(MAX_ENTRIES))
        .map_while(|index| {
            let at = dynamic.offset.checked_add(index * 16)?;
            Some((u64_at(file, at)?, u64_at(file, at.checked_add(8)?)?))
        })
        .take_while(|(tag, _)| *tag != DT_NULL)
        .collect();
    let strings = entries.iter().find(|(tag, _)| *tag == DT_STRTAB).map(|(_, address)| *address)?;
    let load = segments.iter().find(|segment| {
        segment.kind == PT_LOAD
            && strings.checked_sub(segment.address).is_some_and(|into| into < segment.size)
    })?;
    let strings = load.offset.checked_add(strings.checked_sub(load.address)?)?;

    for (tag, value) in entries {
        match tag {
            DT_NEEDED => links.needed.push(text(file, strings.checked_add(value)?)?),
            DT_RPATH | DT_RUNPATH => {
                let list = text(file, strings.checked_add(value)?)?;
                links.search.extend(list.split(':').filter(|entry| !entry.is_empty()).map(str::to_owned));
            }
            _ => {}
        }
    }
    Some(links)
}

fn segments(file: &File) -> Option<Vec<Segment>> {
    let table = u64_at(file, 32)?;
    let [size, count] = [u16_at(file, 54)?, u16_at(file, 56)?].map(u64::from);
    (0..count.min(MAX_ENTRIES))
        .map(|index| {
            let at = table.checked_add(index.checked_mul(size)?)?;
            Some(Segment {
                kind: bytes_at(file, at).map(u32::from_le_bytes)?,
                offset: u64_at(file, at.checked_add(8)?)?,
                address: u64_at(file, at.checked_add(16)?)?,
                size: u64_at(file, at.checked_add(32)?)?,
            })
        })
        .collect()
}

fn bytes_at<const N: usize>(file: &File, at: u64) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, at).ok()?;
    Some(bytes)
}

fn u16_at(file: &File, at: u64) -> Option<u16> {
    bytes_at(file, at).map(u16::from_le_bytes)
}

fn u64_at(file: &File, at: u64) -> Option<u64> {
    bytes_at(file, at).map(u64::from_le_bytes)
}

fn text(file: &File, at: u64) -> Option<String> {
    let mut bytes = vec![0; MAX_TEXT];
    let length = file.read_at(&mut bytes, at).ok()?;
    bytes.truncate(length);
    let end = bytes.iter().position(|&byte| byte == 0)?;
    bytes.truncate(end);
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file
    }

    #[test]
    fn this_test_program_links_the_c_library() {
        let links = links(&File::open(std::env::current_exe().unwrap()).unwrap()).unwrap();
        assert!(links.needed.iter().any(|name| name.starts_with("libc.so")), "{links:?}");
        assert!(links.interpreter.is_some());
    }

    #[test]
    fn a_script_is_no_elf_file() {
        assert!(links(&file(b"#!/bin/sh\n")).is_err());
        assert!(links(&file(b"")).is_err());
    }

    proptest! {
        #[test]
        fn a_damaged_file_is_an_error_or_something_else_but_never_a_panic(
            mut content in proptest::collection::vec(any::<u8>(), 6..600),
            good_magic in any::<bool>(),
        ) {
            if good_magic {
                content[..6].copy_from_slice(b"\x7fELF\x02\x01");
            }
            let _ = links(&file(&content));
        }
    }
}
