//! A connection that can be cut: what goes to one port of loopback is passed on to another, unless it is cut.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// A proxy; it ends with the test's runtime.
pub struct Proxy {
    /// Where it listens.
    pub port: u16,
    cut: Arc<AtomicBool>,
    changed: watch::Sender<()>,
}

impl Proxy {
    /// Passes on to `port`.
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy =
            Self { port: listener.local_addr().unwrap().port(), cut: Arc::default(), changed: watch::channel(()).0 };
        let (cut, changed) = (proxy.cut.clone(), proxy.changed.subscribe());
        tokio::spawn(async move {
            while let Ok((mut from, _)) = listener.accept().await {
                let (cut, mut changed) = (cut.clone(), changed.clone());
                changed.mark_unchanged();
                tokio::spawn(async move {
                    if cut.load(Ordering::SeqCst) {
                        return;
                    }
                    let Ok(mut to) = TcpStream::connect(("127.0.0.1", port)).await else { return };
                    tokio::select! {
                        _ = copy_bidirectional(&mut from, &mut to) => {}
                        _ = changed.changed() => {}
                    }
                });
            }
        });
        proxy
    }

    /// Ends every connection and takes no more.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::SeqCst);
        self.changed.send_replace(());
    }

    /// Takes connections again.
    pub fn mend(&self) {
        self.cut.store(false, Ordering::SeqCst);
    }
}
