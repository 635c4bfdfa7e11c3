//! One connection of a trainer: a task that reads reports and a task that writes orders.

use super::{
    frame,
    ipc::{Order, Report},
    trainer::SupervisorEvent,
};
use common::ids::Slot;
use std::time::Duration;
use tokio::{
    io::AsyncWriteExt as _,
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    task::JoinHandle,
};

/// How many orders may wait to be written.
const WAITING_ORDERS: usize = 64;
/// How long the trainer may take to read an order.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// How long the last reports of a connection that ended may take to be handed on.
const DRAIN_DEADLINE: Duration = Duration::from_secs(2);

/// A trainer's connection. Dropping it closes the side that orders are written to.
#[derive(Debug)]
pub struct Connection {
    orders: mpsc::Sender<Order>,
    reader: JoinHandle<()>,
}

impl Connection {
    /// Begins to read and write.
    pub fn open(stream: UnixStream, slot: Slot, pid: u32, events: mpsc::Sender<SupervisorEvent>) -> Self {
        let (from, to) = stream.into_split();
        let (orders, waiting) = mpsc::channel(WAITING_ORDERS);
        tokio::spawn(write(to, waiting, slot));
        Self { orders, reader: tokio::spawn(read(from, slot, pid, events)) }
    }

    /// Puts an order on its way; false when the connection is of no use any more.
    pub fn order(&self, order: Order) -> bool {
        self.orders.try_send(order).is_ok()
    }

    /// Waits until what the trainer wrote before it closed the connection is handed on.
    pub async fn finish(self) {
        let mut reader = self.reader;
        if tokio::time::timeout(DRAIN_DEADLINE, &mut reader).await.is_err() {
            reader.abort();
        }
    }
}

async fn read(mut from: OwnedReadHalf, slot: Slot, pid: u32, events: mpsc::Sender<SupervisorEvent>) {
    loop {
        match frame::read_async::<Report>(&mut from).await {
            Ok(Some(report)) => {
                if events.send(SupervisorEvent::Report { slot, pid, report: Box::new(report) }).await.is_err() {
                    return;
                }
            }
            Ok(None) => return,
            Err(error) => return tracing::warn!(%slot, pid, %error, "lost the connection of a trainer"),
        }
    }
}

async fn write(mut to: OwnedWriteHalf, mut orders: mpsc::Receiver<Order>, slot: Slot) {
    while let Some(order) = orders.recv().await {
        let frame = match frame::encode(&order) {
            Ok(frame) => frame,
            Err(error) => {
                tracing::error!(%slot, %error, "an order cannot be sent");
                continue;
            }
        };
        match tokio::time::timeout(WRITE_DEADLINE, to.write_all(&frame)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return tracing::warn!(%slot, %error, "an order could not be written"),
            Err(_) => return tracing::warn!(%slot, "the trainer does not read its orders, closing its connection"),
        }
    }
}
