use std::{io, net::SocketAddr};

use tokio::io::{AsyncRead, AsyncWrite};

use super::BoxFuture;

/// What a connection can do.
pub trait ReadWrite: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ReadWrite for T {}

/// One byte stream to another host, in both directions.
pub type Connection = Box<dyn ReadWrite>;

/// Listening and connecting.
pub trait Network: Send + Sync {
    /// Listens on `address`; port 0 means any free port.
    fn listen(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn Listener>>>;

    /// Connects to `authority` (`host:port`). Without a limit of its own: use
    /// [`Env::connect`](super::Env::connect).
    fn connect<'a>(&'a self, authority: &'a str) -> BoxFuture<'a, io::Result<Connection>>;
}

/// A bound socket that takes connections.
pub trait Listener: Send {
    /// The next connection and where it comes from.
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Connection, SocketAddr)>>;

    /// The address it is bound to, with the port that was chosen.
    ///
    /// # Errors
    /// As the operating system says.
    fn local_addr(&self) -> io::Result<SocketAddr>;
}
