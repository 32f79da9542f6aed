//! What decides whether two installations treat a cluster's bytes alike.
//!
//! Three things: the server program, whose catalog and page formats the files follow; the C library, whose collations
//! order text; and ICU, for the same reason. The C library's version is taken from the banner inside the library that the
//! program links, not from the one that Roost itself runs on: a prefix may bring its own. ICU's version is in its
//! libraries' names (`libicui18n.so.72`). Anything else that is linked (TLS, compression) does not change what stored
//! bytes mean.

use std::fs;
use std::io;
use std::path::Path;

use aws_lc_rs::digest::{Context, SHA256};

use super::libraries::Linked;

/// The fingerprint of the server program at `postgres`, as 64 hexadecimal digits.
pub(super) fn of(postgres: &Path, linked: &Linked) -> io::Result<String> {
    let mut hash = Context::new(&SHA256);
    let mut add = |label: &str, value: &[u8]| {
        hash.update(label.as_bytes());
        hash.update(&(value.len() as u64).to_le_bytes());
        hash.update(value);
    };
    add("postgres", &fs::read(postgres)?);
    for library in &linked.libraries {
        let name = library.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with("libicu") {
            add("icu", name.as_bytes());
        } else if name.starts_with("libc.so") || name.starts_with("libc.musl") {
            let content = fs::read(library)?;
            add("libc", banner(&content).unwrap_or(&content));
        }
    }
    Ok(hex(hash.finish().as_ref()))
}

/// The GNU C library's release, as its banner says it: `release version 2.36`.
fn banner(library: &[u8]) -> Option<&[u8]> {
    const START: &[u8] = b"release version ";
    let at = library.windows(START.len()).position(|window| window == START)?;
    let rest = library.get(at..)?;
    let version =
        rest.get(START.len()..)?.iter().take(32).position(|byte| !byte.is_ascii_digit() && *byte != b'.')?;
    rest.get(..START.len() + version).map(|text| text.strip_suffix(b".").unwrap_or(text))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_c_librarys_release_is_read_from_its_banner() {
        let library =
            b"\0GNU C Library (Debian GLIBC 2.36-9+deb12u14) stable release version 2.36.\nCopyright";
        assert_eq!(banner(library), Some(&b"release version 2.36"[..]));
        assert_eq!(banner(b"musl"), None);
        assert_eq!(banner(b"release version 2.36"), None);
    }

    #[test]
    fn a_fingerprint_is_the_same_each_time() {
        let program = std::env::current_exe().unwrap();
        let linked = super::super::libraries::resolve(&program).unwrap();
        let first = of(&program, &linked).unwrap();
        assert_eq!(first.len(), 64);
        assert_eq!(first, of(&program, &linked).unwrap());
    }
}
