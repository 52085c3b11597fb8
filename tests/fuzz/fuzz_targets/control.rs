//! What comes by the control socket of a server: it is a request or it is refused, in one line; and what a server
//! answers is an answer or an error.
#![no_main]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use libfuzzer_sys::fuzz_target;
use snapslot_live::Standing;
use snapslot_live::control::{Answer, Request, hear, say};

fuzz_target!(|data: &[u8]| {
    let (mut ours, theirs) = UnixStream::pair().expect("a pair");
    // It fits into the socket.
    ours.write_all(data).expect("room");
    ours.shutdown(Shutdown::Write).expect("a socket");
    let (heard, answer) = match hear(&theirs, &|| false).expect("a line") {
        Ok(request) => {
            (Some(request), Answer::Done { pid: 1, clients: 2, standing: Standing::default() })
        }
        Err(refusal) => (None, refusal),
    };
    say(&theirs, &answer).expect("room");
    drop(theirs);
    let mut answer = String::new();
    ours.read_to_string(&mut answer).expect("a line");
    assert_eq!(answer.matches('\n').count(), 1, "{answer:?}");
    let refused = matches!(serde_json::from_str(&answer), Ok(Answer::Refused { .. }));
    assert_eq!(refused, heard.is_none(), "{answer:?}");
    if let Some(request) = heard {
        // What was understood is what is meant when it is said again.
        let again = serde_json::to_vec(&request).expect("it can be said");
        assert_eq!(serde_json::from_slice::<Request>(&again).expect("it can be read"), request);
    }
    let _ = serde_json::from_slice::<Answer>(data);
});
