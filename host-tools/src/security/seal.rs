//! Snapshots at rest: only the cluster that made one can open it, and nobody can change it.
//!
//! ```text
//!  0          8          24      56                64                              192
//!  | FRYSEAL1 | cluster  | salt  | length u64 (LE) | the snapshot's header, clear  | chunks …
//! ```
//!
//! The snapshot is cut into chunks of 64 KiB, each sealed with AES-256-GCM. Every file has a key of its own:
//! HKDF-SHA-256 (RFC 5869) of the cluster's key with the salt, bound to all of the header. A chunk's nonce
//! is its number and whether it is the last (the STREAM construction), so chunks cannot be swapped, left
//! out, or cut off.

use ferry_protocol::snapshot::HEADER_LEN;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};

use super::secret::{self, NoRandom};

const MAGIC: [u8; 8] = *b"FRYSEAL1";
const CLUSTER_LEN: usize = 16;
const SALT_AT: usize = 8 + CLUSTER_LEN;
const LENGTH_AT: usize = SALT_AT + 32;
const CLEAR_AT: usize = LENGTH_AT + 8;
/// Bytes before the first chunk.
pub const ENVELOPE_LEN: usize = CLEAR_AT + HEADER_LEN;
const CHUNK: usize = 64 << 10;
const TAG: usize = 16;

/// Why a snapshot cannot be sealed or opened.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum SealError {
    #[error(transparent)]
    NoRandom(#[from] NoRandom),
    #[error("there are {found} bytes to be sealed, a snapshot has at least {HEADER_LEN}")]
    Short { found: usize },
    #[error("the snapshot is not sealed: it was not made by this cluster")]
    NotSealed,
    #[error("the snapshot is of cluster {found}, this is cluster {expected}")]
    OtherCluster { found: String, expected: String },
    #[error("the snapshot's envelope tells {expected} bytes, the file has {found}")]
    Length { found: u64, expected: u64 },
    #[error("the snapshot was changed, or not sealed with the key of this cluster")]
    Changed,
    #[error("the snapshot is sealed: only a manager or agent of cluster {cluster} can open it")]
    Sealed { cluster: String },
}

/// The key of a cluster.
#[derive(Clone)]
pub struct SealKey {
    cluster: String,
    key: [u8; 32],
}

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SealKey({})", self.cluster)
    }
}

/// The cluster a sealed snapshot is of; `None` if it is not sealed.
#[must_use]
pub fn cluster_of(file: &[u8]) -> Option<String> {
    let sealed = file.len() >= ENVELOPE_LEN && file[..8] == MAGIC;
    sealed.then(|| String::from_utf8_lossy(&file[8..SALT_AT]).into_owned())
}

/// Length of the file for `plain` bytes; `None` if no file is so long.
fn sealed_len(plain: u64) -> Option<u64> {
    let chunks = plain.div_ceil(CHUNK as u64).max(1);
    plain.checked_add(chunks.checked_mul(TAG as u64)?)?.checked_add(ENVELOPE_LEN as u64)
}

fn nonce(number: usize, last: bool) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[..8].copy_from_slice(&(number as u64).to_le_bytes());
    bytes[NONCE_LEN - 1] = u8::from(last);
    Nonce::assume_unique_for_key(bytes)
}

impl SealKey {
    /// The key of this cluster.
    #[must_use]
    pub fn new(cluster: String, key: [u8; 32]) -> Self {
        Self { cluster, key }
    }

    /// From base64, as credentials hold it.
    #[must_use]
    pub fn from_text(cluster: &str, text: &str) -> Option<Self> {
        use base64::Engine;
        let key = base64::engine::general_purpose::STANDARD.decode(text).ok()?;
        Some(Self::new(cluster.to_owned(), key.try_into().ok()?))
    }

    fn file_key(&self, envelope: &[u8]) -> Result<LessSafeKey, SealError> {
        let salt = Salt::new(HKDF_SHA256, &envelope[SALT_AT..LENGTH_AT]);
        let info = [envelope];
        let extracted = salt.extract(&self.key);
        let key = extracted.expand(&info, &AES_256_GCM).map_err(|_| SealError::Changed)?;
        Ok(LessSafeKey::new(UnboundKey::from(key)))
    }

    /// Seals a snapshot.
    ///
    /// # Errors
    /// It is too short to be one, or the system has no random numbers.
    pub fn seal(&self, snapshot: &[u8]) -> Result<Vec<u8>, SealError> {
        self.seal_with(snapshot, secret::random()?)
    }

    fn seal_with(&self, snapshot: &[u8], salt: [u8; 32]) -> Result<Vec<u8>, SealError> {
        let clear = snapshot.get(..HEADER_LEN).ok_or(SealError::Short { found: snapshot.len() })?;
        let mut cluster = [b' '; CLUSTER_LEN];
        let len = self.cluster.len().min(CLUSTER_LEN);
        cluster[..len].copy_from_slice(&self.cluster.as_bytes()[..len]);
        let mut out = Vec::with_capacity(snapshot.len() + snapshot.len() / 4096 + 512);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&cluster);
        out.extend_from_slice(&salt);
        out.extend_from_slice(&(snapshot.len() as u64).to_le_bytes());
        out.extend_from_slice(clear);
        let key = self.file_key(&out)?;
        let chunks = snapshot.chunks(CHUNK);
        let count = chunks.len();
        for (number, chunk) in chunks.enumerate() {
            let at = out.len();
            out.extend_from_slice(chunk);
            let nonce = nonce(number, number + 1 == count);
            let tag = key
                .seal_in_place_separate_tag(nonce, Aad::empty(), &mut out[at..])
                .map_err(|_| SealError::Changed)?;
            out.extend_from_slice(tag.as_ref());
        }
        Ok(out)
    }

    /// Opens a sealed snapshot.
    ///
    /// # Errors
    /// It is not sealed, of another cluster, or was changed.
    pub fn open(&self, file: &[u8]) -> Result<Vec<u8>, SealError> {
        let found = cluster_of(file).ok_or(SealError::NotSealed)?;
        if found != self.cluster {
            return Err(SealError::OtherCluster { found, expected: self.cluster.clone() });
        }
        let (envelope, mut rest) = file.split_at(ENVELOPE_LEN);
        let mut len = [0; 8];
        len.copy_from_slice(&envelope[LENGTH_AT..CLEAR_AT]);
        let plain_len = u64::from_le_bytes(len);
        if sealed_len(plain_len) != Some(file.len() as u64) {
            let found = file.len() as u64;
            return Err(SealError::Length { found, expected: plain_len });
        }
        let key = self.file_key(envelope)?;
        let mut out = Vec::with_capacity(rest.len());
        let mut number = 0;
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at(rest.len().min(CHUNK + TAG));
            let mut chunk = chunk.to_vec();
            let nonce = nonce(number, after.is_empty());
            let plain = key
                .open_in_place(nonce, Aad::empty(), &mut chunk)
                .map_err(|_| SealError::Changed)?;
            out.extend_from_slice(plain);
            (rest, number) = (after, number + 1);
        }
        if out.get(..HEADER_LEN) != Some(&envelope[CLEAR_AT..]) {
            return Err(SealError::Changed);
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(cluster: &str) -> SealKey {
        SealKey::new(cluster.into(), [9; 32])
    }

    const CLUSTER: &str = "0123456789abcdef";

    #[test]
    fn sealed_and_opened() {
        for len in [HEADER_LEN, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK] {
            let plain: Vec<u8> = (0..len).map(|at| at as u8 ^ (at >> 8) as u8).collect();
            let sealed = key(CLUSTER).seal(&plain).unwrap();
            assert_eq!(sealed.len() as u64, sealed_len(len as u64).unwrap());
            assert_eq!(key(CLUSTER).open(&sealed).unwrap(), plain);
            assert_eq!(sealed[CLEAR_AT..ENVELOPE_LEN], plain[..HEADER_LEN], "readable");
            assert_ne!(key(CLUSTER).seal(&plain).unwrap(), sealed, "a salt of its own");
        }
        assert!(matches!(key(CLUSTER).seal(&[0; 127]), Err(SealError::Short { found: 127 })));
    }

    #[test]
    fn another_cluster_or_another_key_does_not_open_it() {
        let sealed = key(CLUSTER).seal(&[7; 500]).unwrap();
        assert_eq!(cluster_of(&sealed).as_deref(), Some(CLUSTER));
        let refused = key("fedcba9876543210").open(&sealed).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the snapshot is of cluster 0123456789abcdef, this is cluster fedcba9876543210"
        );
        // Who renames it has still not the key.
        let forger = SealKey::new(CLUSTER.into(), [8; 32]);
        let refused = key(CLUSTER).open(&forger.seal(&[7; 500]).unwrap());
        assert!(matches!(refused, Err(SealError::Changed)));
        assert!(matches!(key(CLUSTER).open(&[7; 500]), Err(SealError::NotSealed)));
        assert!(matches!(key(CLUSTER).open(b""), Err(SealError::NotSealed)));
    }

    #[test]
    fn no_bit_can_be_changed_and_no_chunk_left_out_or_swapped() {
        let plain = vec![5; 2 * CHUNK + 10];
        let good = key(CLUSTER).seal(&plain).unwrap();
        for at in (0..ENVELOPE_LEN).chain([ENVELOPE_LEN, ENVELOPE_LEN + CHUNK, good.len() - 1]) {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(key(CLUSTER).open(&bad).is_err(), "byte {at}");
        }
        let chunk = CHUNK + TAG;
        let (first, rest) = good.split_at(ENVELOPE_LEN + chunk);
        let (second, last) = rest.split_at(chunk);
        let swapped = [&first[..ENVELOPE_LEN], second, &first[ENVELOPE_LEN..], last].concat();
        assert!(matches!(key(CLUSTER).open(&swapped), Err(SealError::Changed)));
        assert!(matches!(
            key(CLUSTER).open(&good[..good.len() - 1]),
            Err(SealError::Length { .. })
        ));
        let mut shorter = [first, last].concat();
        let len = (plain.len() - CHUNK) as u64;
        shorter[LENGTH_AT..CLEAR_AT].copy_from_slice(&len.to_le_bytes());
        assert!(matches!(key(CLUSTER).open(&shorter), Err(SealError::Changed)));
    }
}
