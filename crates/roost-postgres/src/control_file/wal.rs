//! Names and first pages of WAL segments: just enough to say which cluster a segment belongs to.

/// The size of a WAL page (`XLOG_BLCKSZ`), in bytes.
pub const PAGE_BYTES: u32 = 8192;

/// `xlp_info`'s bit of a page with the long header.
const LONG_HEADER: u16 = 0x0002;

mod offset {
    pub(super) const INFO: usize = 2;
    pub(super) const SYSTEM_IDENTIFIER: usize = 24;
    pub(super) const SEGMENT_BYTES: usize = 32;
    pub(super) const PAGE_BYTES: usize = 36;
}

/// The file name of the segment with that position: timeline and segment number in hexadecimal.
pub fn segment_name(timeline: u32, position: u64, segment_bytes: u32) -> String {
    let number = position / u64::from(segment_bytes.max(1));
    let per_file_id = (1_u64 << 32) / u64::from(segment_bytes.max(1));
    format!("{timeline:08X}{:08X}{:08X}", number / per_file_id, number % per_file_id)
}

/// Whether a file in `pg_wal` is named like a segment.
pub fn is_segment_name(name: &str) -> bool {
    name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte))
}

/// The system identifier in a segment's first page. `None` when the page has no long header that agrees with the
/// segment's size: a segment that was preallocated and not yet written, for one.
pub(super) fn system_identifier(first_page: &[u8], segment_bytes: u32) -> Option<u64> {
    let info = u16::from_ne_bytes(*first_page.get(offset::INFO..)?.first_chunk()?);
    let number = |at: usize| first_page.get(at..)?.first_chunk().copied().map(u32::from_ne_bytes);
    let agrees = info & LONG_HEADER != 0
        && number(offset::SEGMENT_BYTES)? == segment_bytes
        && number(offset::PAGE_BYTES)? == PAGE_BYTES;
    if !agrees {
        return None;
    }
    first_page.get(offset::SYSTEM_IDENTIFIER..)?.first_chunk().copied().map(u64::from_ne_bytes)
}

/// Puts another system identifier into a first page that [`system_identifier`] has read. Pages have no checksum of their
/// own, and records do not cover their page's header.
pub(super) fn put_system_identifier(first_page: &mut [u8], id: u64) {
    if let Some(field) =
        first_page.get_mut(offset::SYSTEM_IDENTIFIER..).and_then(|rest| rest.first_chunk_mut::<8>())
    {
        field.copy_from_slice(&id.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_named_as_postgres_names_them() {
        assert_eq!(segment_name(1, 0x0140_0028, 4 << 20), "000000010000000000000005");
        assert_eq!(segment_name(1, 0x0140_0028, 16 << 20), "000000010000000000000001");
        assert_eq!(segment_name(2, 0x1_0000_0000, 16 << 20), "000000020000000100000000");
        assert_eq!(segment_name(1, 0xFFFF_FFFF, 16 << 20), "0000000100000000000000FF");
        assert!(is_segment_name("0000000100000000000000FF"));
        assert!(!is_segment_name("0000000100000000000000ff"));
        assert!(!is_segment_name("00000001.history"));
        assert!(!is_segment_name("archive_status"));
    }

    #[test]
    fn a_page_of_zeros_belongs_to_no_cluster() {
        assert_eq!(system_identifier(&[0; 8192], 4 << 20), None);
        assert_eq!(system_identifier(&[], 4 << 20), None);
    }

    #[test]
    fn an_identifier_that_was_put_is_read_again() {
        let mut page = vec![0; 8192];
        page[2] = 2;
        page[32..36].copy_from_slice(&(4_u32 << 20).to_ne_bytes());
        page[36..40].copy_from_slice(&8192_u32.to_ne_bytes());
        put_system_identifier(&mut page, 0x0123_4567_89AB_CDEF);
        assert_eq!(system_identifier(&page, 4 << 20), Some(0x0123_4567_89AB_CDEF));
        assert_eq!(system_identifier(&page, 16 << 20), None);
    }
}
