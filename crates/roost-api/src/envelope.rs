//! The frames around every answer: `{data}`, `{data, pagination}` and `{error}`, and the paging of lists.

use serde::{Deserialize, Serialize};

/// How many items a page has when the request does not say.
pub const DEFAULT_PAGE: u32 = 100;
/// How many items a page can have.
pub const MAX_PAGE: u32 = 1_000;

/// One object: `{"data": {...}}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Data<T> {
    /// The object.
    pub data: T,
}

/// One page of a list: `{"data": [...], "pagination": {...}}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Page<T> {
    /// The items.
    pub data: Vec<T>,
    /// Where the next page begins.
    pub pagination: Pagination,
}

/// Where the next page of a list begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pagination {
    /// Opaque; the `cursor` of the request for the next page.
    pub next_cursor: Option<String>,
    /// Whether there is a next page.
    pub has_more: bool,
}

impl<T> Page<T> {
    /// A page, and the cursor of the next one if there is one.
    pub fn new(data: Vec<T>, next_cursor: Option<String>) -> Self {
        let has_more = next_cursor.is_some();
        Self { data, pagination: Pagination { next_cursor, has_more } }
    }
}

/// The query of a request for a page of a list.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Paging {
    /// `nextCursor` of the page before; nothing for the first page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// How many items at most: 1 to [`MAX_PAGE`], [`DEFAULT_PAGE`] unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

impl Paging {
    /// The cursor, where an empty one means the first page.
    pub fn cursor(&self) -> Option<&str> {
        self.cursor.as_deref().filter(|cursor| !cursor.is_empty())
    }

    /// The page size, or the error text when it is out of bounds.
    pub fn limit(&self) -> Result<u32, String> {
        match self.limit {
            None => Ok(DEFAULT_PAGE),
            Some(limit) if (1..=MAX_PAGE).contains(&limit) => Ok(limit),
            Some(limit) => Err(format!("limit is {limit}, but must be between 1 and {MAX_PAGE}")),
        }
    }
}

/// What went wrong: `{"error": {...}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorEnvelope {
    /// What went wrong.
    pub error: ErrorBody,
}

/// What went wrong, for programs and for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// A stable word for programs, such as `database-not-found`.
    pub code: String,
    /// What happened, in a sentence.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn envelopes_have_the_documented_shape() {
        assert_eq!(serde_json::to_value(Data { data: 1 }).unwrap(), json!({"data": 1}));
        assert_eq!(
            serde_json::to_value(Page::new(vec![1], Some("c".to_owned()))).unwrap(),
            json!({"data": [1], "pagination": {"nextCursor": "c", "hasMore": true}})
        );
        assert_eq!(
            serde_json::to_value(Page::<u8>::new(vec![], None)).unwrap(),
            json!({"data": [], "pagination": {"nextCursor": null, "hasMore": false}})
        );
        let error = ErrorBody { code: "not-found".into(), message: "No.".into(), hint: None };
        assert_eq!(
            serde_json::to_value(ErrorEnvelope { error }).unwrap(),
            json!({"error": {"code": "not-found", "message": "No."}})
        );
    }

    #[test]
    fn a_page_size_out_of_bounds_is_refused_by_name() {
        let limit = |limit| Paging { cursor: None, limit }.limit();
        assert_eq!(limit(None), Ok(DEFAULT_PAGE));
        assert_eq!(limit(Some(MAX_PAGE)), Ok(MAX_PAGE));
        assert!(limit(Some(0)).is_err_and(|text| text.contains("1000")));
        assert!(limit(Some(MAX_PAGE + 1)).is_err());
    }
}
