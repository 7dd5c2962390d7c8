//! Which images the manager has taken: its signature over cluster, digest and build id.

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

/// What is signed. The name is not: it may be given to another image.
fn message(cluster: &str, image: &ImageRef) -> Vec<u8> {
    format!("ferry image 1\n{cluster}\n{}\n{}\n", image.digest, image.build_id).into_bytes()
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
    let wrong = || NotSigned { name: image.name.clone(), digest: image.digest.short() };
    let key = BASE64.decode(key).map_err(|_| wrong())?;
    let signature = BASE64.decode(signature.trim()).map_err(|_| wrong())?;
    UnparsedPublicKey::new(&ED25519, key)
        .verify(&message(cluster, image), &signature)
        .map_err(|_| wrong())
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
}
