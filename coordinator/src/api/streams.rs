//! Streams that follow a job until it has ended.

use super::errors;
use crate::runtime::{Handle, RuntimeError};
use common::{
    ids::JobId,
    status::{Event, JobStatus},
};
use proto::v1::{EventReply, StatusReply};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, watch},
    time::{Interval, MissedTickBehavior, interval},
};
use tonic::Status;

/// At most four messages a second.
const PACE: Duration = Duration::from_millis(250);
/// How many messages may wait for a slow reader.
pub(super) const QUEUE: usize = 16;
/// How long a reader may take for one message before its stream ends.
const READER: Duration = Duration::from_secs(60);

/// A job's status as it is sent.
pub(super) fn reply(status: &JobStatus) -> Result<StatusReply, Status> {
    let status = serde_json::to_string(status).map_err(|error| Status::internal(error.to_string()))?;
    Ok(StatusReply { status })
}

fn pace() -> Interval {
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pace
}

/// Sends; false when the reader is gone or too slow.
async fn sent<T>(outbox: &mpsc::Sender<Result<T, Status>>, message: Result<T, Status>) -> bool {
    let last = message.is_err();
    outbox.send_timeout(message, READER).await.is_ok() && !last
}

/// The status now and whenever it changes.
pub(super) async fn follow_status(
    mut status: watch::Receiver<Arc<JobStatus>>,
    outbox: mpsc::Sender<Result<StatusReply, Status>>,
) {
    let mut pace = pace();
    loop {
        pace.tick().await;
        let now = status.borrow_and_update().clone();
        if !sent(&outbox, reply(&now)).await || now.phase.exit_code().is_some() {
            return;
        }
        if !changed(&mut status, &outbox).await {
            return;
        }
    }
}

/// Says how a job ended, if it has, to a reader that keeps up.
pub(super) fn tell_end(status: &watch::Receiver<Arc<JobStatus>>, outbox: &mpsc::Sender<Result<StatusReply, Status>>) {
    let status = status.borrow().clone();
    if status.phase.exit_code().is_some() {
        let _ = outbox.try_send(reply(&status));
    }
}

/// The kept events, then, if `follow`, new ones.
pub(super) async fn follow_events(
    handle: Handle,
    job: JobId,
    mut after: u64,
    follow: bool,
    outbox: mpsc::Sender<Result<EventReply, Status>>,
) {
    let mut status = match handle.watch(&job).await {
        Ok(status) => status,
        Err(error) => {
            sent(&outbox, Err(errors::status(&error))).await;
            return;
        }
    };
    let mut pace = pace();
    loop {
        pace.tick().await;
        let over = status.borrow_and_update().phase.exit_code().is_some();
        let events = match handle.events(&job, after).await {
            Ok(events) => events,
            Err(error) => {
                sent(&outbox, Err(errors::status(&error))).await;
                return;
            }
        };
        for event in events {
            after = event.sequence;
            if !sent(&outbox, event_reply(&event)).await {
                return;
            }
        }
        if !follow || over || !changed(&mut status, &outbox).await {
            return;
        }
    }
}

fn event_reply(event: &Event) -> Result<EventReply, Status> {
    let event = serde_json::to_string(event).map_err(|error| Status::internal(error.to_string()))?;
    Ok(EventReply { event })
}

/// Waits for a change; false when the reader or the loop is gone. The wait is as long as the job is quiet: it ends with
/// the reader, the loop or the server.
async fn changed<T>(status: &mut watch::Receiver<Arc<JobStatus>>, outbox: &mpsc::Sender<Result<T, Status>>) -> bool {
    tokio::select! {
        () = outbox.closed() => false,
        changed = status.changed() => match changed {
            Ok(()) => true,
            Err(_) => sent(outbox, Err(errors::status(&RuntimeError::Closed))).await,
        },
    }
}
