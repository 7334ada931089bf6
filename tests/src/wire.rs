//! HTTP/2 written by hand: a client that sends what no library would. Enough of RFC 9113 and RFC 7541 to attack a
//! server and to see what it does about it, and no more.

use std::io;
use std::net::Ipv4Addr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream};

/// What every client says first.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

/// Flags; END_STREAM and ACK are the same bit of different frames.
pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// `INITIAL_WINDOW_SIZE` among the settings.
pub const INITIAL_WINDOW_SIZE: u16 = 4;

/// A frame as it goes over the wire.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut out = Vec::with_capacity(9 + payload.len());
    out.extend_from_slice(&length[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

/// One setting, as the payload of a SETTINGS frame.
pub fn setting(id: u16, value: u32) -> Vec<u8> {
    [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()
}

/// A header list (HPACK) that begins a gRPC call of this path.
pub fn call(path: &str) -> Vec<u8> {
    // :method POST and :scheme http are in the static table; of :path, :authority and content-type the names are.
    let mut out = vec![0x83, 0x86, 0x04];
    text(&mut out, path);
    out.push(0x01);
    text(&mut out, "127.0.0.1");
    out.extend_from_slice(&[0x0f, 31 - 15]);
    text(&mut out, "application/grpc");
    header(&mut out, "te", "trailers");
    out
}

/// A header that neither side remembers.
pub fn header(out: &mut Vec<u8>, name: &str, value: &str) {
    out.push(0);
    text(out, name);
    text(out, value);
}

/// A header that both sides put into their tables; it is then number 62.
pub fn remembered_header(out: &mut Vec<u8>, name: &str, value: &str) {
    out.push(0x40);
    text(out, name);
    text(out, value);
}

fn text(out: &mut Vec<u8>, text: &str) {
    // An integer with a prefix of seven bits (RFC 7541, 5.1); no Huffman.
    let mut length = text.len();
    if length < 127 {
        out.push(u8::try_from(length).unwrap());
    } else {
        out.push(127);
        length -= 127;
        while length >= 128 {
            out.push(u8::try_from(length % 128).unwrap() | 0x80);
            length /= 128;
        }
        out.push(u8::try_from(length).unwrap());
    }
    out.extend_from_slice(text.as_bytes());
}

/// A message as gRPC frames it, not compressed.
pub fn message(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
    [&[0][..], &length, bytes].concat()
}

/// A frame that the server sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The error code, if this is a GOAWAY.
    pub fn go_away(&self) -> Option<u32> {
        if self.kind != GOAWAY {
            return None;
        }
        Some(u32::from_be_bytes(self.payload.get(4..8)?.try_into().ok()?))
    }
}

/// A connection over TCP from an address of this machine: the caps by peer tell `127.0.0.2` from `127.0.0.1`.
pub async fn connect(server: &str, from: Ipv4Addr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    let stream = socket.connect(server.parse().unwrap()).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A connection on which the preface and settings were sent.
#[derive(Debug)]
pub struct Wire {
    pub reader: FrameReader,
    pub writer: OwnedWriteHalf,
}

impl Wire {
    /// Connects, and says who it is.
    pub async fn open(server: &str, from: Ipv4Addr) -> io::Result<Self> {
        Self::open_with(server, from, &[]).await
    }

    /// The same with settings, see [`setting`].
    pub async fn open_with(server: &str, from: Ipv4Addr, settings: &[u8]) -> io::Result<Self> {
        let (reader, mut writer) = connect(server, from).await?.into_split();
        writer.write_all(PREFACE).await?;
        writer.write_all(&frame(SETTINGS, 0, 0, settings)).await?;
        Ok(Self { reader: FrameReader(reader), writer })
    }

    /// Sends bytes as they are.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.writer.write_all(bytes).await
    }

    /// Reads until the server's answer to a ping of ours: all that was sent before it has then been read.
    pub async fn ping(&mut self) -> io::Result<()> {
        const QUESTION: [u8; 8] = *b"are you?";
        self.send(&frame(PING, 0, 0, &QUESTION)).await?;
        loop {
            let frame = self.reader.next().await?;
            if frame.kind == PING && frame.flags & ACK != 0 && frame.payload == QUESTION {
                return Ok(());
            }
        }
    }

    /// Ends without a word, as a process that is killed does when something waits to be read.
    pub fn vanish(self) {
        let Ok(socket) = self.reader.0.reunite(self.writer) else { return };
        // Zero linger: the peer gets a reset instead of an end.
        let _ = socket.set_zero_linger();
    }
}

/// The server's frames.
#[derive(Debug)]
pub struct FrameReader(OwnedReadHalf);

impl FrameReader {
    /// The next frame; an error where the connection has ended.
    pub async fn next(&mut self) -> io::Result<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        self.0.read_exact(&mut payload).await?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Ok(Frame { kind: head[3], flags: head[4], stream, payload })
    }
}
