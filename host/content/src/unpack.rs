//! Compressed clusters.

use flate2::{Decompress, FlushDecompress, Status};

use crate::Compression;

/// Unpacks to exactly `out`. Bytes behind the stream's end are not looked at: what is listed
/// is rounded up to sectors.
pub(crate) fn unpack(method: Compression, packed: &[u8], out: &mut [u8]) -> Result<(), String> {
    let length = match method {
        Compression::Deflate => {
            let mut stream = Decompress::new(false);
            match stream.decompress(packed, out, FlushDecompress::Finish) {
                Ok(Status::StreamEnd | Status::Ok) => {}
                Ok(Status::BufError) if stream.total_out() == out.len() as u64 => {}
                Ok(Status::BufError) => return Err("the stream ends too early".to_owned()),
                Err(e) => return Err(e.to_string()),
            }
            stream.total_out()
        }
        Compression::Zstd => {
            let mut context = zstd::zstd_safe::DCtx::create();
            let mut input = zstd::zstd_safe::InBuffer::around(packed);
            let size = out.len();
            let mut output = zstd::zstd_safe::OutBuffer::around(out);
            loop {
                let before = (input.pos(), output.pos());
                let rest = context
                    .decompress_stream(&mut output, &mut input)
                    .map_err(|code| zstd::zstd_safe::get_error_name(code).to_owned())?;
                if rest == 0 || output.pos() == size || before == (input.pos(), output.pos()) {
                    break;
                }
            }
            output.pos() as u64
        }
    };
    match length == out.len() as u64 {
        true => Ok(()),
        false => Err(format!("it unpacks to {length} bytes")),
    }
}

#[cfg(test)]
mod tests {
    //! Goal: whole streams unpack, with and without bytes behind them; cut ones are errors.

    use super::*;
    use std::io::Write as _;

    fn deflated(data: &[u8]) -> Vec<u8> {
        let mut to = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::new(6));
        to.write_all(data).expect("memory");
        to.finish().expect("memory")
    }

    #[test]
    fn both_methods_unpack_and_notice_what_is_missing() {
        let data: Vec<u8> = (0..65_536_u32).map(|i| (i / 7) as u8).collect();
        let zstd = zstd::bulk::compress(&data, 3).expect("packs");
        for (method, packed) in [(Compression::Deflate, deflated(&data)), (Compression::Zstd, zstd)]
        {
            let mut out = vec![0; data.len()];
            unpack(method, &packed, &mut out).expect("unpacks");
            assert!(out == data, "{method:?}");
            let padded: Vec<u8> = packed.iter().copied().chain([0xff; 512]).collect();
            unpack(method, &padded, &mut out).expect("unpacks with bytes behind");
            unpack(method, &packed[..packed.len() / 2], &mut out).expect_err("cut");
            let mut more = vec![0; data.len() + 1];
            unpack(method, &packed, &mut more).expect_err("too short");
        }
    }
}
