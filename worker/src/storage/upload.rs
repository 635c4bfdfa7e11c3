//! An object that is written as a stream, in parts of which several are under way.

use super::{
    Location, ObjectUrl, StorageError,
    remote::Remote,
    retry::{Failure, sort},
};
use object_store::{ObjectStoreExt as _, PutPayload, multipart::PartId};
use std::{collections::VecDeque, sync::mpsc::Receiver};

/// How long a part is, unless the object is so long that there would be too many. S3 takes none below 5 MiB but the last.
const PART: u64 = 8 << 20;
/// How many parts an object may have; S3 takes 10,000.
const PARTS: u64 = 9_000;
/// Parts under way, and in memory.
const UNDER_WAY: usize = 4;

/// See the file's text. The object appears when it is finished, whole or not at all; what was sent of one that is dropped before is
/// given up, so that nobody pays for it.
#[derive(Debug)]
pub struct Upload<'a> {
    remote: &'a Remote,
    url: ObjectUrl,
    /// Bytes of a part.
    part: usize,
    /// The part at hand.
    filled: Vec<u8>,
    /// What was written so far.
    bytes: u64,
    /// What the store calls this upload; absent while what there is fits into one part.
    id: Option<String>,
    under_way: VecDeque<Receiver<Result<PartId, StorageError>>>,
    sent: Vec<PartId>,
}

impl<'a> Upload<'a> {
    /// Begins; nothing is sent yet. `bytes` is the whole length.
    pub(super) fn new(remote: &'a Remote, url: ObjectUrl, bytes: u64) -> Self {
        let part = usize::try_from(bytes.div_ceil(PARTS).max(PART)).expect("a part fits in memory");
        let (under_way, sent) = (VecDeque::new(), Vec::new());
        Self { remote, url, part, filled: Vec::new(), bytes: 0, id: None, under_way, sent }
    }

    /// Adds bytes. Blocks while as many parts are under way as may be.
    ///
    /// # Errors
    /// When the store does not take a part, this one or an earlier one.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), StorageError> {
        while !bytes.is_empty() {
            if self.filled.len() == self.part {
                self.send()?;
            }
            let (now, later) = bytes.split_at(bytes.len().min(self.part - self.filled.len()));
            self.filled.extend_from_slice(now);
            self.bytes += now.len() as u64;
            bytes = later;
        }
        Ok(())
    }

    /// Makes it an object, and counts what the store says it has.
    ///
    /// # Errors
    /// When the store does not take a part, or the whole.
    pub fn finish(mut self) -> Result<(), StorageError> {
        if self.id.is_none() {
            let all = std::mem::take(&mut self.filled);
            return self.remote.put(&self.url, all);
        }
        if !self.filled.is_empty() {
            self.send()?;
        }
        self.wait_until(0)?;
        self.complete()?;
        self.id = None;
        let found = self.remote.stat(&self.url)?.size;
        if found == self.bytes {
            return Ok(());
        }
        let answer = format!("it has {found} bytes after {} were written", self.bytes);
        Err(StorageError::Refused { operation: "write", location: Location::Object(self.url.clone()), answer })
    }

    fn complete(&mut self) -> Result<(), StorageError> {
        let (id, url, parts, bytes) =
            (self.id.clone().unwrap_or_default(), self.url.clone(), std::mem::take(&mut self.sent), self.bytes);
        self.remote.wait_for("finish", &self.url, move |shared, tries| {
            let (id, url, parts) = (id.clone(), url.clone(), parts.clone());
            async move {
                let (client, path) = shared.parts(&url)?;
                match client.complete_multipart(&path, &id, parts).await.map_err(|error| sort(&error)) {
                    // A try whose answer was lost may have made it an object all the same.
                    Err(Failure::Final(refusal)) if tries > 0 => {
                        let (client, path) = shared.client(&url)?;
                        let there = client.head(&path).await.is_ok_and(|meta| meta.size == bytes);
                        if there { Ok(()) } else { Err(Failure::Final(refusal)) }
                    }
                    done => done.map(drop),
                }
            }
        })
    }

    /// Begins to send the part at hand.
    fn send(&mut self) -> Result<(), StorageError> {
        let id = match &self.id {
            Some(id) => id.clone(),
            None => self.id.insert(begin(self.remote, &self.url)?).clone(),
        };
        self.wait_until(UNDER_WAY - 1)?;
        let number = self.sent.len() + self.under_way.len();
        let (url, payload) = (self.url.clone(), PutPayload::from(std::mem::take(&mut self.filled)));
        self.under_way.push_back(self.remote.begin("write", &self.url, move |shared, _| {
            let (id, url, payload) = (id.clone(), url.clone(), payload.clone());
            async move {
                let (client, path) = shared.parts(&url)?;
                client.put_part(&path, &id, number, payload).await.map_err(|error| sort(&error))
            }
        }));
        Ok(())
    }

    /// Waits until no more than so many parts are under way.
    fn wait_until(&mut self, left: usize) -> Result<(), StorageError> {
        while self.under_way.len() > left {
            let oldest = self.under_way.pop_front().expect("there is one");
            self.sent.push(self.remote.finish("write", &self.url, oldest)?);
        }
        Ok(())
    }
}

fn begin(remote: &Remote, url: &ObjectUrl) -> Result<String, StorageError> {
    let wanted = url.clone();
    remote.wait_for("begin", url, move |shared, _| {
        let url = wanted.clone();
        async move {
            let (client, path) = shared.parts(&url)?;
            client.create_multipart(&path).await.map_err(|error| sort(&error))
        }
    })
}

impl Drop for Upload<'_> {
    fn drop(&mut self) {
        let Some(id) = self.id.take() else { return };
        // A part that is still under way would be there after the rest was given up.
        while let Some(oldest) = self.under_way.pop_front() {
            let _ = self.remote.finish("write", &self.url, oldest);
        }
        let url = self.url.clone();
        // Nobody waits for this: what is left over, the bucket's rules for unfinished uploads delete.
        drop(self.remote.begin("give up", &self.url, move |shared, _| {
            let (id, url) = (id.clone(), url.clone());
            async move {
                let (client, path) = shared.parts(&url)?;
                client.abort_multipart(&path, &id).await.map_err(|error| sort(&error))
            }
        }));
    }
}
