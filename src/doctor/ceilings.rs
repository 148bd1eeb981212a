//! What bounds the speed of a card, measured: how fast memory is read, what a launch costs.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::backend::cuda::driver::Device;
use crate::backend::cuda::ops::ceilings::CeilingKernels;
use crate::error::Result;

/// Timed repetitions; medians are reported.
const REPETITIONS: usize = 15;
/// Launches of a repetition.
const LAUNCHES: u32 = 200;

/// The ceilings of a card.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ceilings {
    /// Bytes that were read at a time; if they fit the card's cache, the speed is that of the cache.
    pub bytes: usize,
    /// Speed of reading memory, in 10^9 bytes per second.
    pub read_gb_s: f64,
    /// Microseconds from one launch of an empty kernel to the next.
    pub launch_us: f64,
    /// Microseconds of one launch that is waited for.
    pub round_trip_us: f64,
}

/// Measures the card with that number, reading that many bytes at a time.
///
/// # Errors
/// `cuda_unavailable`, `memory_exhausted`; the device failed.
pub fn measure_ceilings(ordinal: usize, bytes: usize) -> Result<Ceilings> {
    let device = Device::open(ordinal)?;
    let kernels = CeilingKernels::load(&device, bytes)?;
    let time = |work: &dyn Fn() -> Result<()>| -> Result<Duration> {
        work()?;
        device.synchronize()?;
        let mut times = Vec::with_capacity(REPETITIONS);
        for _ in 0..REPETITIONS {
            let start = Instant::now();
            work()?;
            device.synchronize()?;
            times.push(start.elapsed());
        }
        times.sort_unstable();
        Ok(times[REPETITIONS / 2])
    };
    let round_trip = time(&|| kernels.launch_empty())?;
    let launches = time(&|| (0..LAUNCHES).try_for_each(|_| kernels.launch_empty()))?;
    let read = time(&|| kernels.read())?;
    let microseconds = |time: Duration| time.as_secs_f64() * 1e6;
    Ok(Ceilings {
        bytes: kernels.bytes(),
        read_gb_s: kernels.bytes() as f64 / read.as_secs_f64() / 1e9,
        launch_us: microseconds(launches) / f64::from(LAUNCHES),
        round_trip_us: microseconds(round_trip),
    })
}
