//! What the cache holds: documents ready to send, and pages that name them.

use std::{hash::Hasher, sync::Arc};

use bytes::Bytes;
use http::HeaderValue;
use pygmy_protocol::{
    invalidation::CacheKey,
    item::{ItemNumber, PageRequest},
};
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128};

/// Most pages kept of one topic. Readers that want the same topic in the same portions need one
/// page for each portion they turn to; who asks for every limit there is shall not fill the cache.
const PAGES_PER_TOPIC: usize = 16;
/// What an entry takes besides its content: key, slot, table, ETag, allocations.
const ENTRY_BYTES: usize = 320;
/// What a page takes besides its item numbers.
const PAGE_BYTES: usize = 80;

/// A JSON document and the strong ETag of its content.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Document {
    pub(crate) body: Bytes,
    pub(crate) etag: HeaderValue,
}

impl Document {
    pub(crate) fn new(json: impl Into<Box<[u8]>>) -> Arc<Document> {
        let body = Bytes::from(json.into());
        let etag = HeaderValue::from_str(&format!("\"{:032x}\"", xxh3_128(&body)));
        // Hexadecimal digits in quotes are always a valid header value.
        Arc::new(Document { body, etag: etag.unwrap_or(HeaderValue::from_static("\"\"")) })
    }
}

/// One page of a topic: which items, not what they are.
#[derive(Clone)]
pub(crate) struct Page {
    pub(crate) items: Arc<[ItemNumber]>,
    pub(crate) next: Option<Arc<str>>,
}

/// The answer to a search: the items of a page in their order, and the next page's cursor.
pub(crate) fn page_body(items: &[Arc<Document>], next: Option<&str>) -> Bytes {
    let next = serde_json::json!(next).to_string();
    let length: usize = items.iter().map(|item| item.body.len() + 1).sum();
    let mut body = Vec::with_capacity(length + next.len() + r#"{"items":[],"next":}"#.len());
    body.extend_from_slice(br#"{"items":["#);
    for (place, item) in items.iter().enumerate() {
        if place > 0 {
            body.push(b',');
        }
        body.extend_from_slice(&item.body);
    }
    body.extend_from_slice(br#"],"next":"#);
    body.extend_from_slice(next.as_bytes());
    body.push(b'}');
    body.into()
}

/// The pages of one topic. They are one entry, so that an invalidation of the topic drops all.
#[derive(Clone, Default)]
pub(crate) struct Pages(Vec<(PageRequest, Page)>);

impl Pages {
    pub(crate) fn get(&self, which: PageRequest) -> Option<&Page> {
        self.0.iter().find(|(request, _)| *request == which).map(|(_, page)| page)
    }

    /// Adds a page; the oldest goes when there are too many.
    pub(crate) fn put(&mut self, which: PageRequest, page: Page) {
        self.0.retain(|(request, _)| *request != which);
        if self.0.len() == PAGES_PER_TOPIC {
            self.0.remove(0);
        }
        self.0.push((which, page));
    }
}

/// What a key stands for.
pub(crate) enum Entry {
    /// An item, or the list of topics.
    Document(Arc<Document>),
    /// A topic.
    Topic(Pages),
}

/// Weighs entries in bytes.
pub(crate) struct Bytewise;

impl quick_cache::Weighter<CacheKey, Entry> for Bytewise {
    fn weight(&self, key: &CacheKey, entry: &Entry) -> u64 {
        let key = if let CacheKey::Topic(topic) = key { topic.len() } else { 0 };
        let content = match entry {
            Entry::Document(document) => document.body.len(),
            Entry::Topic(pages) => {
                pages.0.iter().map(|(_, p)| PAGE_BYTES + p.items.len() * size_of::<u64>()).sum()
            }
        };
        (ENTRY_BYTES + key + content) as u64
    }
}

/// Hashes a key alike in every run: the simulator replays a seed exactly.
#[derive(Default)]
pub(crate) struct FixedHasher(u64);

impl Hasher for FixedHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64_with_seed(bytes, self.0);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_put_together_from_its_items() {
        let items = [Document::new(*b"{\"a\":1}"), Document::new(*b"{\"b\":2}")];
        assert_eq!(page_body(&[], None), r#"{"items":[],"next":null}"#);
        assert_eq!(page_body(&items, Some("a2")), r#"{"items":[{"a":1},{"b":2}],"next":"a2"}"#);
    }

    #[test]
    fn a_topic_keeps_its_newest_pages() {
        let page = Page { items: [].into(), next: None };
        let which = |after| PageRequest { limit: 1, after };
        let mut pages = Pages::default();
        for after in 0..=PAGES_PER_TOPIC as u64 {
            pages.put(which(after), page.clone());
            pages.put(which(after), page.clone());
        }
        assert!(pages.get(which(0)).is_none());
        assert!((1..=PAGES_PER_TOPIC as u64).all(|after| pages.get(which(after)).is_some()));
    }

    #[test]
    fn the_etag_is_of_the_content() {
        assert_eq!(Document::new(*b"1"), Document::new(*b"1"));
        assert_ne!(Document::new(*b"1").etag, Document::new(*b"2").etag);
    }
}
