//! What lies where in etcd. Each key begins with the prefix, so that clusters and others share one etcd.

/// The keys below one prefix.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: format!("{}/", prefix.trim_end_matches('/')) }
    }

    /// The election of managers; its candidates' keys lie below.
    pub(super) fn election(&self) -> String {
        format!("{}leader", self.prefix)
    }

    /// Fingerprint of the cluster's authority.
    pub(super) fn cluster(&self) -> String {
        format!("{}cluster", self.prefix)
    }

    /// Written by every change.
    pub(super) fn turn(&self) -> String {
        format!("{}turn", self.prefix)
    }

    /// All records.
    pub(super) fn services(&self) -> String {
        format!("{}services/", self.prefix)
    }

    /// A record, as JSON.
    pub(super) fn service(&self, name: &str) -> String {
        format!("{}services/{name}", self.prefix)
    }

    /// The highest epoch a service with this id ever had, in decimal. Never removed.
    pub(super) fn epoch(&self, id: &str) -> String {
        format!("{}epochs/{id}", self.prefix)
    }

    /// All documents of a kind.
    pub(super) fn documents(&self, kind: &str) -> String {
        format!("{}documents/{kind}/", self.prefix)
    }

    /// A document, as JSON.
    pub(super) fn document(&self, kind: &str, id: &str) -> String {
        format!("{}documents/{kind}/{id}", self.prefix)
    }
}
