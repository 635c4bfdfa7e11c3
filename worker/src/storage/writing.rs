//! Objects that are written, copied and deleted.

use super::{
    ObjectUrl, StorageError,
    download::Download,
    remote::Remote,
    retry::{Failure, Refusal, sort},
    upload::Upload,
};
use object_store::{ObjectStoreExt as _, PutMode, PutOptions, PutPayload};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

impl Remote {
    /// Writes an object.
    pub fn put(&self, url: &ObjectUrl, bytes: Vec<u8>) -> Result<(), StorageError> {
        self.put_as(url, bytes, PutMode::Overwrite).map(drop)
    }

    /// Writes an object unless there is one.
    pub fn put_if_absent(&self, url: &ObjectUrl, bytes: Vec<u8>) -> Result<bool, StorageError> {
        self.put_as(url, bytes, PutMode::Create)
    }

    /// Deletes an object; that there is none is no error.
    pub fn delete(&self, url: &ObjectUrl) -> Result<(), StorageError> {
        let wanted = url.clone();
        self.wait_for("delete", url, move |shared, _| {
            let url = wanted.clone();
            async move {
                let (client, path) = shared.client(&url)?;
                match client.delete(&path).await.map_err(|error| sort(&error)) {
                    Err(Failure::Final(Refusal::NotFound)) => Ok(()),
                    done => done,
                }
            }
        })
    }

    /// Copies an object within its bucket, over what is there.
    pub fn copy(&self, from: &ObjectUrl, to: &ObjectUrl) -> Result<(), StorageError> {
        let entry = self.stat(from)?;
        if entry.size > self.shared.limits.copy {
            let mut upload = Upload::new(self, to.clone(), entry.size);
            for block in Download::new(self, from, &entry) {
                upload.write(&block?)?;
            }
            return upload.finish();
        }
        let (wanted, place) = (from.clone(), to.clone());
        self.wait_for("copy", from, move |shared, _| {
            let (from, to) = (wanted.clone(), place.clone());
            async move {
                let (client, path) = shared.client(&from)?;
                let (_, to) = shared.client(&to)?;
                client.copy(&path, &to).await.map_err(|error| sort(&error))
            }
        })
    }

    fn put_as(&self, url: &ObjectUrl, bytes: Vec<u8>, mode: PutMode) -> Result<bool, StorageError> {
        let (wanted, payload) = (url.clone(), PutPayload::from(bytes));
        // A try whose answer was lost may have written the object all the same.
        let unsure = Arc::new(AtomicBool::new(false));
        self.wait_for("write", url, move |shared, tries| {
            let (url, payload, mode, unsure) = (wanted.clone(), payload.clone(), mode.clone(), unsure.clone());
            async move {
                let (client, path) = shared.client(&url)?;
                unsure.fetch_or(tries > 0, Ordering::Relaxed);
                let put = client.put_opts(&path, payload.clone(), PutOptions::from(mode)).await;
                match put.map_err(|error| sort(&error)) {
                    Ok(_) => Ok(true),
                    Err(Failure::Final(Refusal::Precondition)) if !unsure.load(Ordering::Relaxed) => Ok(false),
                    Err(Failure::Final(Refusal::Precondition)) => {
                        let there = client.get(&path).await.map_err(|error| sort(&error))?;
                        let there = there.bytes().await.map_err(|error| sort(&error))?;
                        Ok(there == bytes::Bytes::from(payload))
                    }
                    Err(failure) => Err(failure),
                }
            }
        })
    }
}
