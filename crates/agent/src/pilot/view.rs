//! The cluster view: checked when it comes, kept on the volume, so that the member starts again with nobody to ask.
//!
//! Invariants: what is held was signed by the cluster's CA, belongs to this cluster, and is never older than what was
//! held before, neither by generation nor by the operator's epoch.

use std::path::Path;

use backlot_standard::view::{ClusterView, SignedView};
use base64::Engine as _;
use ring::signature::{ED25519, UnparsedPublicKey};

/// File name in the agent's state directory.
pub const FILE: &str = "view.json";

/// A view and the form in which it came.
#[derive(Clone, Debug)]
pub struct Held {
    /// What it says.
    pub view: ClusterView,
    /// What is passed on and stored.
    pub signed: SignedView,
}

/// Why a view is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The signature is not by the cluster's CA.
    #[error("the view's signature is not by this cluster's CA")]
    Signature,
    /// It is for another cluster.
    #[error("the view is of cluster {theirs}, this member belongs to {ours}")]
    Cluster {
        /// Cluster of the view.
        theirs: String,
        /// Cluster of this member.
        ours: String,
    },
    /// It cannot be read.
    #[error("the view cannot be read: {0}")]
    Unreadable(String),
    /// It is older than the one held.
    #[error(
        "the view is older (generation {given}, epoch {given_epoch}) than the one held (generation {held}, epoch {held_epoch})"
    )]
    Older {
        /// Generation given.
        given: u64,
        /// Epoch given.
        given_epoch: u64,
        /// Generation held.
        held: u64,
        /// Highest epoch seen.
        held_epoch: u64,
    },
    /// Same generation as the one held, different content.
    #[error("another view of the same generation {0} is held")]
    Different(u64),
}

/// Checks a view against the CA's keys, the cluster and what is held; `seen_epoch` is the highest epoch seen.
pub fn accept(
    signed: SignedView,
    ca_keys: &[Vec<u8>],
    cluster_uid: &str,
    held: Option<&Held>,
    seen_epoch: u64,
) -> Result<Held, Refusal> {
    let signature =
        base64::engine::general_purpose::STANDARD.decode(&signed.signature).map_err(|_| Refusal::Signature)?;
    let verified =
        |key: &Vec<u8>| UnparsedPublicKey::new(&ED25519, key).verify(signed.payload.as_bytes(), &signature).is_ok();
    if !ca_keys.iter().any(verified) {
        return Err(Refusal::Signature);
    }
    let new = parse(signed, cluster_uid)?;
    let generation = held.map_or(0, |held| held.view.generation);
    if new.view.generation < generation || new.view.operator_epoch < seen_epoch {
        return Err(Refusal::Older {
            given: new.view.generation,
            given_epoch: new.view.operator_epoch,
            held: generation,
            held_epoch: seen_epoch,
        });
    }
    match held {
        Some(held) if held.view.generation == new.view.generation && held.view != new.view => {
            Err(Refusal::Different(generation))
        }
        _ => Ok(new),
    }
}

/// Reads the stored view. Its signature was checked when it came; the CA may have changed since.
pub fn load(state: &Path, cluster_uid: &str) -> Option<Held> {
    let bytes = std::fs::read(state.join(FILE)).ok()?;
    parse(serde_json::from_slice(&bytes).ok()?, cluster_uid).ok()
}

fn parse(signed: SignedView, cluster_uid: &str) -> Result<Held, Refusal> {
    let view: ClusterView =
        serde_json::from_str(&signed.payload).map_err(|error| Refusal::Unreadable(error.to_string()))?;
    if view.cluster_uid != cluster_uid {
        return Err(Refusal::Cluster { theirs: view.cluster_uid, ours: cluster_uid.to_owned() });
    }
    Ok(Held { view, signed })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::signature::{Ed25519KeyPair, KeyPair};

    fn key(seed: u8) -> Ed25519KeyPair {
        Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
    }

    fn signed(seed: u8, uid: &str, generation: u64, epoch: u64, name: &str) -> SignedView {
        let payload = serde_json::json!({
            "standard": "0.1", "generation": generation, "operatorEpoch": epoch, "clusterUid": uid,
            "clusterName": name, "engineName": "e", "groups": [], "members": [], "components": {},
        })
        .to_string();
        let signature = key(seed).sign(payload.as_bytes());
        SignedView { signature: base64::engine::general_purpose::STANDARD.encode(signature), payload }
    }

    fn try_accept(view: SignedView, held: Option<&Held>, seen: u64) -> Result<Held, Refusal> {
        let keys = [1, 2].map(|seed| key(seed).public_key().as_ref().to_vec());
        accept(view, &keys, "uid", held, seen)
    }

    #[test]
    fn only_the_clusters_own_newer_views_are_held() {
        let held = try_accept(signed(1, "uid", 5, 3, "n"), None, 0).unwrap();
        let cases = [
            ("signed by a stranger", signed(9, "uid", 6, 3, "n"), Some(Refusal::Signature)),
            ("signed by the second CA", signed(2, "uid", 6, 3, "n"), None),
            ("newer", signed(1, "uid", 6, 3, "n"), None),
            ("the same again", signed(1, "uid", 5, 3, "n"), None),
            ("same number, other content", signed(1, "uid", 5, 3, "m"), Some(Refusal::Different(5))),
            ("newer by an old operator", signed(1, "uid", 6, 2, "n"), Some(older(6, 2))),
            ("older", signed(1, "uid", 4, 3, "n"), Some(older(4, 3))),
        ];
        for (name, view, refusal) in cases {
            assert_eq!(try_accept(view, Some(&held), 3).err(), refusal, "{name}");
        }
        let other = try_accept(signed(1, "other", 6, 3, "n"), None, 0);
        assert!(matches!(other, Err(Refusal::Cluster { .. })));
        let mut broken = signed(1, "uid", 6, 3, "n");
        broken.payload.push(' ');
        assert_eq!(try_accept(broken, None, 0).err(), Some(Refusal::Signature));
    }

    fn older(given: u64, given_epoch: u64) -> Refusal {
        Refusal::Older { given, given_epoch, held: 5, held_epoch: 3 }
    }

    #[test]
    fn a_torn_or_foreign_stored_view_is_no_view() {
        let directory = tempfile::tempdir().unwrap();
        assert!(load(directory.path(), "uid").is_none());
        let view = serde_json::to_vec(&signed(1, "uid", 5, 3, "n")).unwrap();
        std::fs::write(directory.path().join(FILE), &view).unwrap();
        assert_eq!(load(directory.path(), "uid").unwrap().view.generation, 5);
        assert!(load(directory.path(), "other").is_none());
        std::fs::write(directory.path().join(FILE), &view[..view.len() / 2]).unwrap();
        assert!(load(directory.path(), "uid").is_none());
    }
}
