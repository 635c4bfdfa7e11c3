//! Damaged tars and indices by the thousand: never a panic, never more memory than the file is large, and never a sample
//! that was not there.

use super::{member, tar};
use crate::fuzzing::{Draws, for_a_while};
use crate::{
    data::{
        index::{IMAGE, ShardIndex, Store},
        scan::scan,
        source::{ReadAt, Stat, Version},
        tar::Walk,
    },
    storage::Location,
};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Damages bytes in one of the ways in which files are damaged, or in which somebody would attack.
fn mutate(bytes: &mut Vec<u8>, draws: &mut Draws) {
    for _ in 0..=draws.below(4) {
        let at = draws.below(bytes.len());
        match draws.below(8) {
            0 => bytes.truncate(at),
            1 if at < bytes.len() => bytes[at] ^= 1 << draws.below(8),
            2 if at < bytes.len() => bytes[at] = [0, 0xff, 0x80, b'9', b' ', b'/', b'.'][draws.below(7)],
            3 => {
                let end = (at + draws.below(2000)).min(bytes.len());
                bytes.drain(at..end);
            }
            4 => {
                let end = (at + draws.below(1500)).min(bytes.len());
                let copy = bytes[at..end].to_vec();
                let to = draws.below(bytes.len());
                bytes.splice(to..to, copy);
            }
            5 => {
                let end = (at + draws.below(64)).min(bytes.len());
                bytes[at..end].iter_mut().for_each(|byte| *byte = draws.next() as u8);
            }
            6 => refield(bytes, draws),
            _ => {
                let end = (at + 512).min(bytes.len());
                bytes[at..end].fill(0);
            }
        }
        if bytes.is_empty() {
            return;
        }
    }
}

/// Changes a field of a header and makes its checksum right again, so that the reader goes on with it.
fn refield(bytes: &mut [u8], draws: &mut Draws) {
    let at = draws.below(bytes.len() / 512) * 512;
    let Some(block) = bytes.get_mut(at..at + 512) else { return };
    match draws.below(4) {
        0 => block[124..136].iter_mut().for_each(|byte| *byte = b'0' + (draws.next() % 8) as u8),
        1 => {
            block[124] = 0x80;
            block[125..136].iter_mut().for_each(|byte| *byte = draws.next() as u8);
        }
        2 => block[156] = b"0xgLK5S1"[draws.below(8)],
        _ => block[draws.below(100)] = draws.next() as u8,
    }
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}

/// Bytes that remember the largest read: a reader allocates no more than that at once.
struct Watched(Vec<u8>, AtomicUsize);

impl ReadAt for Watched {
    fn length(&self) -> std::io::Result<u64> {
        self.0.length()
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.1.fetch_max(bytes.len(), Ordering::Relaxed);
        self.0.read_at(bytes, offset)
    }
}

/// A tar with everything in it: pax and GNU names, base-256 sizes, apart and repeated members, odd sizes.
fn valid(draws: &mut Draws) -> Vec<u8> {
    let mut bytes = Vec::new();
    for i in 0..1 + draws.below(12) {
        let body: Vec<u8> = (0..draws.below(1800)).map(|j| (j * 7 + i) as u8).collect();
        match draws.below(5) {
            0 => {
                let record = format!("path={}/{i}.jpg\n", "d".repeat(draws.below(200)));
                let length = record.len() + 4;
                bytes.extend(member("././@PaxHeader", b"xg"[draws.below(2)], format!("{length} {record}").as_bytes()));
            }
            1 => bytes.extend(member(
                "././@LongLink",
                b'L',
                format!("{}{i}.png\0", "e".repeat(draws.below(300))).as_bytes(),
            )),
            _ => {}
        }
        let ending = ["jpg", "txt", "json", "png", "cls", "npy"][draws.below(6)];
        bytes.extend(member(&format!("{}.{ending}", draws.below(6)), b'0', &body));
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

#[test]
fn damaged_tars_give_true_members_or_an_end() {
    for_a_while(|draws| {
        let mut bytes = valid(draws);
        mutate(&mut bytes, draws);
        let length = bytes.len() as u64;
        let watched = Watched(bytes, AtomicUsize::new(0));
        let mut walk = Walk::new(&watched).unwrap();
        let (mut last, mut members) = (0, 0);
        while let Some(member) = walk.next().unwrap() {
            assert!(
                member.offset >= last + 512 && member.offset + member.size <= length,
                "{member:?} of {length} bytes"
            );
            last = member.offset + member.size;
            members += 1;
            assert!(members <= length / 512, "more members than blocks");
        }
        assert!(walk.end().is_some());
        assert!(watched.1.into_inner() as u64 <= length.max(8192));
    });
}

#[test]
fn a_cut_tar_gives_the_first_of_its_members_wherever_it_is_cut() {
    let members = |bytes: &Vec<u8>| {
        let mut walk = Walk::new(bytes).unwrap();
        let mut members = Vec::new();
        while let Some(member) = walk.next().unwrap() {
            members.push(member);
        }
        members
    };
    let whole = valid(&mut Draws(3));
    let all = members(&whole);
    assert!(all.len() > 3);
    for cut in (0..whole.len()).step_by(37) {
        let found = members(&whole[..cut].to_vec());
        assert_eq!(found, all[..found.len()], "cut at {cut}");
        let there = all.iter().filter(|member| member.offset + member.size <= cut as u64).count();
        assert_eq!(found.len(), there, "cut at {cut}");
    }
}

#[test]
fn damaged_tars_are_indexed_with_every_place_inside_them() {
    for_a_while(|draws| {
        let mut bytes = valid(draws);
        if draws.below(8) > 0 {
            mutate(&mut bytes, draws);
        }
        let length = bytes.len() as u64;
        let Ok(rows) = scan(&bytes, &Location::Local("fuzz.tar".into())) else { return };
        let stat = Stat { size: length, version: Version::Modified(0) };
        let index = ShardIndex::open(Store::Memory(rows.write("fuzz", stat, Vec::new()).unwrap())).unwrap();
        index.check().unwrap();
        let mut keys = Vec::new();
        index.keys(|key| keys.push(key.to_owned())).unwrap();
        for row in 0..index.footer().rows {
            assert_eq!(index.key(row).unwrap(), keys[row as usize]);
            for slot in 0..index.footer().slots.len() {
                if let Some(place) = index.place(row, slot).unwrap() {
                    let extent = place.extent();
                    assert!(extent.offset >= 512 && extent.offset + extent.length <= length);
                }
            }
        }
    });
}

#[test]
fn damaged_indices_are_refused_or_say_what_the_whole_one_says() {
    let members: Vec<(String, Vec<u8>)> = (0..400).map(|i| (format!("{i}.jpg"), vec![i as u8; i])).collect();
    let members: Vec<(&str, &[u8])> = members.iter().map(|(name, body)| (name.as_str(), body.as_slice())).collect();
    let rows = scan(&tar(&members), &Location::Local("fuzz.tar".into())).unwrap();
    let whole = rows.write("fuzz", Stat { size: 1, version: Version::Modified(2) }, Vec::new()).unwrap();
    let truth = ShardIndex::open(Store::Memory(whole.clone())).unwrap();
    for_a_while(|draws| {
        let mut bytes = whole.clone();
        mutate(&mut bytes, draws);
        let Ok(index) = ShardIndex::open(Store::Memory(bytes)) else { return };
        assert_eq!(index.footer(), truth.footer(), "a footer that was believed is the one that was written");
        for row in (0..400).step_by(13) {
            if let Ok(place) = index.place(row, IMAGE) {
                assert_eq!(place, truth.place(row, IMAGE).unwrap());
            }
            if let Ok(key) = index.key(row) {
                assert_eq!(key, truth.key(row).unwrap());
            }
        }
    });
}
