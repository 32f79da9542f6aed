//! Listings in pages, oldest first. A page continues after a row's key, so it costs the same at the start and at the
//! end, and rows that come or go meanwhile neither repeat nor hide others.

use crate::error::CatalogError;

/// Items that one page holds at most; a larger limit means this one.
pub const MAX_PAGE: u32 = 1_000;

/// Which part of a listing is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Where the page before ended ([`Listing::next_cursor`]); `None` begins at the first item.
    pub cursor: Option<String>,
    /// How many items at most, from 1 to [`MAX_PAGE`]; what lies outside is moved to the nearest end.
    pub limit: u32,
}

impl Default for Page {
    fn default() -> Self {
        Self { cursor: None, limit: 100 }
    }
}

impl Page {
    /// The key after which the page begins.
    pub(crate) fn after(&self) -> Result<i64, CatalogError> {
        match &self.cursor {
            None => Ok(i64::MIN),
            Some(text) => match text.parse::<i64>() {
                Ok(key) if key >= 0 => Ok(key),
                _ => Err(CatalogError::InvalidCursor),
            },
        }
    }

    /// How many rows the page holds.
    pub(crate) fn size(&self) -> usize {
        usize::try_from(self.limit.clamp(1, MAX_PAGE)).unwrap_or(1)
    }

    /// The SQL limit: one row more than the page, which tells whether there is a next one.
    pub(crate) fn fetch(&self) -> i64 {
        i64::from(self.limit.clamp(1, MAX_PAGE)) + 1
    }
}

/// One page of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing<T> {
    /// The items, oldest first.
    pub items: Vec<T>,
    /// Where the next page begins; `None` at the end.
    pub next_cursor: Option<String>,
}

impl<T> Listing<T> {
    /// A page from the rows that [`Page::fetch`] asked for, each with its key.
    pub(crate) fn from_rows(mut rows: Vec<(i64, T)>, page: &Page) -> Self {
        let more = rows.len() > page.size();
        rows.truncate(page.size());
        let next_cursor = rows.last().filter(|_| more).map(|(key, _)| key.to_string());
        Self { items: rows.into_iter().map(|(_, item)| item).collect(), next_cursor }
    }

    /// Whether there are more items after this page.
    pub fn has_more(&self) -> bool {
        self.next_cursor.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_with_one_row_too_many_has_a_next_one_after_its_last_item() {
        let page = Page { cursor: None, limit: 2 };
        let listing = Listing::from_rows(vec![(3, 'a'), (5, 'b'), (9, 'c')], &page);
        assert_eq!(listing.items, ['a', 'b']);
        assert_eq!(listing.next_cursor.as_deref(), Some("5"));
        assert!(!Listing::from_rows(vec![(3, 'a'), (5, 'b')], &page).has_more());
    }

    #[test]
    fn a_made_up_cursor_is_an_error() {
        for text in ["", "x", "-1", "9223372036854775808", "1;--"] {
            let page = Page { cursor: Some(text.to_owned()), limit: 1 };
            assert!(matches!(page.after(), Err(CatalogError::InvalidCursor)), "{text}");
        }
    }

    #[test]
    fn a_limit_outside_the_bounds_moves_to_the_nearest_one() {
        assert_eq!(Page { cursor: None, limit: 0 }.size(), 1);
        assert_eq!(Page { cursor: None, limit: u32::MAX }.fetch(), 1_001);
    }
}
