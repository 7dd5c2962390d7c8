//! What the manager has said, so that others can pass it on: which images it has taken, and that it has given a
//! service to a node. Each text begins with its kind, so that none can be taken for another.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey};

use crate::api::ImageRef;

/// Why an image is not booted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "image {name} ({digest}) is not signed by the manager of this cluster: it was changed in the \
     repository, or pushed elsewhere"
)]
pub struct NotSigned {
    /// The image's name.
    pub name: String,
    /// The first digits of its digest.
    pub digest: String,
}

/// A word of a peer that the manager has given a service to this node, which it has not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the manager of this cluster has not signed that `{service}` is node {node}'s under epoch {epoch}"
)]
pub struct NotGranted {
    /// Id of the service.
    pub service: String,
    /// Name of the node.
    pub node: String,
    /// The ownership number.
    pub epoch: u64,
}

/// What is signed. The name is not: it may be given to another image.
fn message(cluster: &str, image: &ImageRef) -> Vec<u8> {
    format!("ferry image 1\n{cluster}\n{}\n{}\n", image.digest, image.build_id).into_bytes()
}

/// That the store has given a service to a node under an epoch.
#[derive(Clone, Copy, Debug)]
pub struct Grant<'a> {
    /// Id of the service.
    pub service: &'a str,
    /// Name of the node.
    pub node: &'a str,
    /// The ownership number.
    pub epoch: u64,
}

impl Grant<'_> {
    fn message(&self, cluster: &str) -> Vec<u8> {
        let Self { service, node, epoch } = self;
        format!("ferry grant 1\n{cluster}\n{service}\n{node}\n{epoch}\n").into_bytes()
    }

    /// Signs it; the signature is in base64.
    #[must_use]
    pub fn sign(&self, key: &Ed25519KeyPair, cluster: &str) -> String {
        BASE64.encode(key.sign(&self.message(cluster)))
    }

    /// Verifies that the holder of the key whose public half is `key`, in base64, has signed it.
    ///
    /// # Errors
    /// It has not.
    pub fn verify(&self, key: &str, cluster: &str, signature: &str) -> Result<(), NotGranted> {
        has_signed(key, &self.message(cluster), signature).ok_or_else(|| NotGranted {
            service: self.service.to_owned(),
            node: self.node.to_owned(),
            epoch: self.epoch,
        })
    }
}

fn has_signed(key: &str, message: &[u8], signature: &str) -> Option<()> {
    let (key, signature) = (BASE64.decode(key).ok()?, BASE64.decode(signature.trim()).ok()?);
    UnparsedPublicKey::new(&ED25519, key).verify(message, &signature).ok()
}

/// Signs an image; the signature is in base64.
#[must_use]
pub fn sign(key: &Ed25519KeyPair, cluster: &str, image: &ImageRef) -> String {
    BASE64.encode(key.sign(&message(cluster, image)))
}

/// Verifies that the holder of the key whose public half is `key`, in base64, has signed this image.
///
/// # Errors
/// It has not.
pub fn verify(
    key: &str,
    cluster: &str,
    image: &ImageRef,
    signature: &str,
) -> Result<(), NotSigned> {
    has_signed(key, &message(cluster, image), signature)
        .ok_or_else(|| NotSigned { name: image.name.clone(), digest: image.digest.short() })
}

#[cfg(test)]
mod tests {
    use ring::signature::KeyPair;

    use super::*;
    use crate::api::Digest32;

    fn key(seed: u8) -> Ed25519KeyPair {
        Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
    }

    #[test]
    fn only_the_signed_image_in_its_cluster() {
        let image =
            ImageRef { name: "p".into(), digest: Digest32([1; 32]), build_id: Digest32([2; 32]) };
        let public = BASE64.encode(key(1).public_key());
        let signature = sign(&key(1), "c", &image);
        assert_eq!(verify(&public, "c", &image, &signature), Ok(()));
        let renamed = ImageRef { name: "q".into(), ..image.clone() };
        assert_eq!(verify(&public, "c", &renamed, &signature), Ok(()));
        let other = ImageRef { digest: Digest32([3; 32]), ..image.clone() };
        assert!(verify(&public, "c", &other, &signature).is_err());
        let other = ImageRef { build_id: Digest32([3; 32]), ..image.clone() };
        assert!(verify(&public, "c", &other, &signature).is_err());
        assert!(verify(&public, "d", &image, &signature).is_err());
        assert!(verify(&public, "c", &image, &sign(&key(2), "c", &image)).is_err());
        for bad in ["", "AAAA", "!"] {
            assert!(verify(&public, "c", &image, bad).is_err());
        }
    }

    #[test]
    fn only_the_granted_epoch_on_the_granted_node() {
        let grant = Grant { service: "id-p", node: "b", epoch: 2 };
        let public = BASE64.encode(key(1).public_key());
        let signature = grant.sign(&key(1), "c");
        assert_eq!(grant.verify(&public, "c", &signature), Ok(()));
        for other in [
            Grant { service: "id-q", ..grant },
            Grant { node: "a", ..grant },
            Grant { epoch: 3, ..grant },
            // Not the same text either.
            Grant { service: "id-p\nb", node: "", ..grant },
        ] {
            assert!(other.verify(&public, "c", &signature).is_err(), "{other:?}");
        }
        assert!(grant.verify(&public, "d", &signature).is_err());
        for bad in [grant.sign(&key(2), "c"), String::new(), "AAAA".into(), "!".into()] {
            assert!(grant.verify(&public, "c", &bad).is_err(), "{bad}");
        }
    }
}
