//! Which parameters of a vision tower stay as they are when it is locked but for the groups at its end, as open_clip's `lock`
//! has it. Norms have no special place: they are locked with the group that they are in.

use super::{ModelError, vision::VisionTower};

/// Says of a parameter's name whether it is locked while `unlocked` groups at the end are not.
///
/// # Errors
/// When the tower has fewer groups.
pub fn locked(tower: &dyn VisionTower, unlocked: u32) -> Result<impl Fn(&str) -> bool + '_, ModelError> {
    // The embeddings, the blocks, and the way into the shared space.
    let groups = tower.layers() + 2;
    let first = groups - i64::from(unlocked);
    if first < 0 {
        return Err(ModelError::LockGroups { unlocked, groups });
    }
    Ok(move |name: &str| group(tower, name) < first)
}

/// From 0, the embeddings, to L + 1, the projection or pooling; the norm behind the last block is in that block's group.
fn group(tower: &dyn VisionTower, name: &str) -> i64 {
    if name.starts_with(tower.final_norm()) { tower.layers() } else { tower.layer_id(name) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::vision::VisionConfig;
    use std::{
        collections::{BTreeMap, BTreeSet},
        path::Path,
    };
    use tch::{Device, nn};

    #[test]
    fn the_unlocked_parameters_are_those_of_open_clip() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/model");
        let text = std::fs::read_to_string(golden.join("lock.json")).unwrap();
        let lists: BTreeMap<String, BTreeMap<u32, Vec<String>>> = serde_json::from_str(&text).unwrap();
        for (architecture, folder) in [("clip", "vit"), ("eva02", "eva02"), ("siglip", "siglip-timm")] {
            let config = VisionConfig::read(&golden.join(folder)).unwrap();
            let store = nn::VarStore::new(Device::Cpu);
            let tower = config.build(&store.root());
            let names: BTreeSet<String> = store.variables().into_keys().collect();
            for (unlocked, theirs) in &lists[architecture] {
                let locked = locked(tower.as_ref(), *unlocked).unwrap();
                let ours: BTreeSet<String> = names.iter().filter(|name| !locked(name)).cloned().collect();
                let theirs = theirs.iter().flat_map(|name| config.names().parameters(name)).collect();
                assert_eq!(ours, theirs, "{architecture}, {unlocked} unlocked groups");
            }
            assert!(names.iter().all(|name| !locked(tower.as_ref(), 4).unwrap()(name)));
            let message = locked(tower.as_ref(), 5).err().unwrap().to_string();
            assert!(message.contains("5 groups") && message.contains("has 4"), "{message}");
        }
    }
}
