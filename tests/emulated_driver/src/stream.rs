//! Streams: queues of work.
use std::collections::VecDeque;
use std::time::Instant;

use crate::driver::{CUdeviceptr, Driver, Handle, Out, Result, call_in_context, put};
use crate::errors::{CUDA_ERROR_INVALID_HANDLE, CUDA_ERROR_NOT_READY, CUresult};
use crate::launch::KernelLaunch;

/// The default stream's handles end here.
const DEFAULT_STREAMS: Handle = 3;

/// A stream, with the work that has not run.
#[derive(Default)]
pub(crate) struct Stream {
    pub(crate) queue: VecDeque<Operation>,
    flags: u32,
    priority: i32,
}

/// A piece of work.
pub(crate) enum Operation {
    Launch(KernelLaunch),
    /// Bytes for the device. Pinned host memory is read when the copy runs, other memory when it is submitted.
    Upload {
        to: CUdeviceptr,
        from: HostBytes,
    },
    /// Bytes for the host, by address and length.
    Download {
        to: usize,
        from: CUdeviceptr,
        len: usize,
    },
    Copy {
        to: CUdeviceptr,
        from: CUdeviceptr,
        len: usize,
    },
    /// `count` times a pattern.
    Fill {
        to: CUdeviceptr,
        pattern: Vec<u8>,
        count: usize,
    },
    Free(CUdeviceptr),
    Record {
        event: Handle,
        record: u64,
    },
    /// Waits for a record of an event.
    Wait {
        event: Handle,
        record: u64,
    },
}

/// Bytes of host memory: a copy of them, or where they are.
pub(crate) enum HostBytes {
    Copied(Vec<u8>),
    At { address: usize, len: usize },
}

impl Driver {
    /// Gives a stream work: it runs now, or when somebody waits for it.
    pub(crate) fn submit(&mut self, stream: Handle, operation: Operation) -> Result {
        let queue = &mut self.streams.get_mut(&stream).ok_or(CUDA_ERROR_INVALID_HANDLE)?.queue;
        self.fault.map_or(Ok(()), Err)?;
        if self.settings.lazy_streams {
            queue.push_back(operation);
            return Ok(());
        }
        self.execute(operation)
    }

    fn next_operation(&mut self, stream: Handle) -> Option<Operation> {
        self.streams.get_mut(&stream)?.queue.pop_front()
    }

    /// Runs a stream's work, and of other streams only what it waits for.
    pub(crate) fn run_stream(&mut self, stream: Handle) -> Result {
        while let Some(operation) = self.next_operation(stream) {
            self.execute_in_order(operation)?;
        }
        self.check_fault()
    }

    /// Runs an operation of a stream, and what it waits for of another one before.
    fn execute_in_order(&mut self, operation: Operation) -> Result {
        let Operation::Wait { event, record } = operation else { return self.execute(operation) };
        while let Some(awaited) = self.events.get(&event).filter(|event| event.reached < record) {
            let other = awaited.stream;
            let Some(operation) = self.next_operation(other) else { break };
            self.execute(operation)?;
        }
        Ok(())
    }

    /// Runs a stream's work up to a record of an event.
    pub(crate) fn run_until(&mut self, stream: Handle, event: Handle, record: u64) -> Result {
        while self.events.get(&event).is_some_and(|event| event.reached < record) {
            let Some(operation) = self.next_operation(stream) else { break };
            self.execute_in_order(operation)?;
        }
        self.check_fault()
    }

    /// Runs all work, that of the youngest stream first: the order that is least like the program's.
    pub(crate) fn run_all_streams(&mut self) -> Result {
        let streams: Vec<Handle> = self.streams.keys().rev().copied().collect();
        streams.into_iter().try_for_each(|stream| self.run_stream(stream))?;
        self.check_fault()
    }

    pub(crate) fn execute(&mut self, operation: Operation) -> Result {
        self.check_fault()?;
        match operation {
            Operation::Launch(launch) => self.run_kernel(&launch),
            Operation::Upload { to, from } => self.upload(to, &from),
            Operation::Download { to, from, len } => self.download(to, from, len),
            Operation::Copy { to, from, len } => {
                self.check_range(from, len, "source of a device copy")?;
                self.check_range(to, len, "destination of a device copy")?;
                if len > 0 {
                    self.memory.copy(to, from, len as u64);
                }
                Ok(())
            }
            Operation::Fill { to, pattern, count } => {
                self.check_range(to, pattern.len() * count, "memset")?;
                if count > 0 {
                    self.memory.fill(to, &pattern, count as u64);
                }
                Ok(())
            }
            Operation::Free(address) => self.free(address),
            Operation::Record { event, record } => {
                if let Some(event) = self.events.get_mut(&event) {
                    (event.reached, event.time) = (record, Some(Instant::now()));
                }
                Ok(())
            }
            // Whatever it waits for has run: work runs when it is submitted, or `run_stream` sees to it.
            Operation::Wait { .. } => Ok(()),
        }
    }
}

fn create(stream: Out<Handle>, flags: u32, priority: i32) -> CUresult {
    call_in_context(|driver| {
        let handle = driver.new_handle();
        driver.streams.insert(handle, Stream { flags, priority, ..Stream::default() });
        put(stream, handle)
    })
}

/// Creates a stream.
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamCreate(stream: Out<Handle>, flags: u32) -> CUresult {
    create(stream, flags, 0)
}

/// Creates a stream with a priority, which has no effect.
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamCreateWithPriority(stream: Out<Handle>, flags: u32, priority: i32) -> CUresult {
    create(stream, flags, priority)
}

/// Destroys a stream after its work.
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamDestroy_v2(stream: Handle) -> CUresult {
    call_in_context(|driver| {
        if stream < DEFAULT_STREAMS || !driver.streams.contains_key(&stream) {
            return Err(CUDA_ERROR_INVALID_HANDLE);
        }
        let result = driver.run_stream(stream);
        driver.streams.remove(&stream);
        result
    })
}

/// Waits for a stream's work.
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamSynchronize(stream: Handle) -> CUresult {
    call_in_context(|driver| {
        if !driver.streams.contains_key(&stream) {
            return Err(CUDA_ERROR_INVALID_HANDLE);
        }
        driver.calls.synchronizations += 1;
        driver.run_stream(stream)
    })
}

/// Whether a stream's work is done.
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamQuery(stream: Handle) -> CUresult {
    call_in_context(|driver| {
        let is_idle = driver.streams.get(&stream).ok_or(CUDA_ERROR_INVALID_HANDLE)?.queue.is_empty();
        if is_idle { driver.check_fault() } else { Err(CUDA_ERROR_NOT_READY) }
    })
}

/// Lets a stream's further work wait for an event.
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamWaitEvent(stream: Handle, event: Handle, _flags: u32) -> CUresult {
    call_in_context(|driver| {
        let record = driver.events.get(&event).ok_or(CUDA_ERROR_INVALID_HANDLE)?.recorded;
        driver.submit(stream, Operation::Wait { event, record })
    })
}

/// A stream's flags.
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamGetFlags(stream: Handle, flags: Out<u32>) -> CUresult {
    call_in_context(|driver| put(flags, driver.streams.get(&stream).ok_or(CUDA_ERROR_INVALID_HANDLE)?.flags))
}

/// A stream's priority.
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamGetPriority(stream: Handle, priority: Out<i32>) -> CUresult {
    call_in_context(|driver| put(priority, driver.streams.get(&stream).ok_or(CUDA_ERROR_INVALID_HANDLE)?.priority))
}

/// No stream is ever captured.
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamIsCapturing(_stream: Handle, status: Out<u32>) -> CUresult {
    call_in_context(|_| put(status, 0))
}
