// The pretended driver's streams, events and graphs. Work is done as late as it may be: when
// somebody waits for it, and then only what that wait is for. So a stream that reads what another
// was to write, without a wait between them, reads what was there before, and a host that writes
// over what is still to be copied copies the wrong bytes.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

namespace pretended {

[[noreturn]] void refuse(const char* call, const char* what);

using Work = std::function<void()>;
using Guard = std::lock_guard<std::recursive_mutex>;
constexpr int LAUNCH_FAILED = 719;

// What was recorded of a stream, to be played again.
struct Graph {
    std::vector<Work> work;
};

struct Stream {
    std::deque<Work> queue;
    uint64_t done = 0, queued = 0;
    std::unique_ptr<Graph> recording;
};

// A moment in a stream.
struct Event {
    std::shared_ptr<Stream> stream;
    uint64_t position = 0;
    bool happened = false;
    std::chrono::steady_clock::time_point time;
};

struct Streams {
    std::recursive_mutex lock; // guards all of the driver: programs call from many threads
    bool failed = false;       // a device that failed once does nothing more
    std::map<void*, std::shared_ptr<Stream>> streams;
    std::map<void*, std::shared_ptr<Event>> events;
    std::set<Graph*> graphs, executables;
    unsigned recordings = 0;

    Stream& stream(const char* call, void* handle) {
        auto found = streams.find(handle);
        if (found == streams.end()) refuse(call, "a handle that is not, or no longer, one");
        return *found->second;
    }
    std::shared_ptr<Event>& event(const char* call, void* handle) {
        auto found = events.find(handle);
        if (found == events.end()) refuse(call, "a handle that is not, or no longer, one");
        return found->second;
    }
    void add(const char* call, void* handle, Work work) {
        const Guard guard(lock);
        Stream& to = stream(call, handle);
        if (to.recording) {
            to.recording->work.push_back(std::move(work));
        } else {
            to.queue.push_back(std::move(work));
            to.queued++;
        }
    }
    int run_until(Stream& stream, uint64_t position) {
        const Guard guard(lock);
        while (!failed && stream.done < position) {
            const Work work = std::move(stream.queue.front());
            stream.queue.pop_front();
            stream.done++;
            work();
        }
        return failed ? LAUNCH_FAILED : 0;
    }
    int run_all(const char* call) {
        const Guard guard(lock);
        none_recorded(call);
        for (auto& [handle, stream] : streams) run_until(*stream, stream->queued);
        return failed ? LAUNCH_FAILED : 0;
    }
    // What CUDA refuses while a stream is recorded.
    void none_recorded(const char* call) {
        if (recordings > 0) refuse(call, "while a stream is recorded");
    }
    bool idle() {
        if (failed) return true; // nothing of it will be done
        for (auto& [handle, stream] : streams) {
            if (!stream->queue.empty()) return false;
        }
        return true;
    }
    bool empty() { return streams.empty() && events.empty() && graphs.empty() && executables.empty(); }
};

inline Streams all;

} // namespace pretended

extern "C" {

int cuStreamCreate(void** stream, unsigned) {
    const pretended::Guard guard(pretended::all.lock);
    auto made = std::make_shared<pretended::Stream>();
    *stream = made.get();
    pretended::all.streams[*stream] = std::move(made);
    return 0;
}
int cuStreamDestroy_v2(void* handle) {
    const pretended::Guard guard(pretended::all.lock);
    auto& stream = pretended::all.stream("cuStreamDestroy", handle);
    if (stream.recording) pretended::refuse("cuStreamDestroy", "while it is recorded");
    pretended::all.run_until(stream, stream.queued);
    return pretended::all.streams.erase(handle), 0;
}
int cuStreamSynchronize(void* handle) {
    const pretended::Guard guard(pretended::all.lock);
    pretended::all.none_recorded("cuStreamSynchronize");
    auto& stream = pretended::all.stream("cuStreamSynchronize", handle);
    return pretended::all.run_until(stream, stream.queued);
}
int cuStreamWaitEvent(void* handle, void* event_handle, unsigned) {
    const pretended::Guard guard(pretended::all.lock);
    constexpr const char* call = "cuStreamWaitEvent";
    if (pretended::all.stream(call, handle).recording) pretended::refuse(call, "while it is recorded");
    const pretended::Event& event = *pretended::all.event(call, event_handle);
    if (!event.stream) return 0; // nothing to wait for
    if (std::getenv("IGNORE_WAITS") != nullptr) return 0;
    pretended::all.add(call, handle, [stream = event.stream, position = event.position] {
        pretended::all.run_until(*stream, position);
    });
    return 0;
}

int cuEventCreate(void** event, unsigned) {
    const pretended::Guard guard(pretended::all.lock);
    auto made = std::make_shared<pretended::Event>();
    *event = made.get();
    pretended::all.events[*event] = std::move(made);
    return 0;
}
int cuEventDestroy_v2(void* handle) {
    const pretended::Guard guard(pretended::all.lock);
    pretended::all.event("cuEventDestroy", handle);
    return pretended::all.events.erase(handle), 0;
}
int cuEventRecord(void* handle, void* stream_handle) {
    const pretended::Guard guard(pretended::all.lock);
    constexpr const char* call = "cuEventRecord";
    if (pretended::all.stream(call, stream_handle).recording) {
        pretended::refuse(call, "while the stream is recorded");
    }
    auto& event = pretended::all.event(call, handle);
    event->happened = false;
    event->stream = pretended::all.streams[stream_handle];
    event->position = event->stream->queued + 1;
    pretended::all.add(call, stream_handle, [event, position = event->position] {
        if (event->position != position) return; // recorded anew since
        event->happened = true;
        event->time = std::chrono::steady_clock::now();
    });
    return 0;
}
int cuEventSynchronize(void* handle) {
    const pretended::Guard guard(pretended::all.lock);
    pretended::all.none_recorded("cuEventSynchronize");
    const pretended::Event& event = *pretended::all.event("cuEventSynchronize", handle);
    return event.stream ? pretended::all.run_until(*event.stream, event.position) : 0;
}
int cuEventQuery(void* handle) {
    const pretended::Guard guard(pretended::all.lock);
    const pretended::Event& event = *pretended::all.event("cuEventQuery", handle);
    if (pretended::all.failed) return pretended::LAUNCH_FAILED;
    return !event.stream || event.stream->done >= event.position ? 0 : 600; // nobody's wait
}
int cuEventElapsedTime_v2(float* ms, void* start, void* end) {
    const pretended::Guard guard(pretended::all.lock);
    const pretended::Event& from = *pretended::all.event("cuEventElapsedTime", start);
    const pretended::Event& to = *pretended::all.event("cuEventElapsedTime", end);
    if (!from.stream || !to.stream) return 400;
    if (!from.happened || !to.happened) return 600;
    *ms = std::chrono::duration<float, std::milli>(to.time - from.time).count();
    return 0;
}

int cuStreamBeginCapture_v2(void* handle, unsigned mode) {
    const pretended::Guard guard(pretended::all.lock);
    constexpr const char* call = "cuStreamBeginCapture";
    auto& stream = pretended::all.stream(call, handle);
    if (mode != 1) pretended::refuse(call, "a mode that is not pretended");
    if (stream.recording) pretended::refuse(call, "it is recorded already");
    pretended::all.recordings++;
    stream.recording = std::make_unique<pretended::Graph>();
    return 0;
}
int cuStreamEndCapture(void* handle, void** graph) {
    const pretended::Guard guard(pretended::all.lock);
    auto& stream = pretended::all.stream("cuStreamEndCapture", handle);
    if (!stream.recording) pretended::refuse("cuStreamEndCapture", "it is not recorded");
    pretended::all.recordings--;
    pretended::Graph* made = stream.recording.release();
    pretended::all.graphs.insert(made);
    return *graph = made, 0;
}
int cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long flags) {
    const pretended::Guard guard(pretended::all.lock);
    auto* from = static_cast<pretended::Graph*>(graph);
    if (!pretended::all.graphs.count(from)) pretended::refuse("cuGraphInstantiate", "not a graph");
    if (flags != 0) pretended::refuse("cuGraphInstantiate", "flags that are not pretended");
    auto* made = new pretended::Graph(*from);
    pretended::all.executables.insert(made);
    return *executable = made, 0;
}
int cuGraphDestroy(void* graph) {
    const pretended::Guard guard(pretended::all.lock);
    auto* from = static_cast<pretended::Graph*>(graph);
    if (pretended::all.graphs.erase(from) == 0) pretended::refuse("cuGraphDestroy", "not a graph");
    return delete from, 0;
}
int cuGraphExecDestroy(void* executable) {
    const pretended::Guard guard(pretended::all.lock);
    auto* from = static_cast<pretended::Graph*>(executable);
    if (pretended::all.executables.erase(from) == 0) {
        pretended::refuse("cuGraphExecDestroy", "not an executable graph");
    }
    if (!pretended::all.idle()) pretended::refuse("cuGraphExecDestroy", "work is under way");
    return delete from, 0;
}
int cuGraphLaunch(void* executable, void* stream) {
    const pretended::Guard guard(pretended::all.lock);
    constexpr const char* call = "cuGraphLaunch";
    auto* from = static_cast<pretended::Graph*>(executable);
    if (!pretended::all.executables.count(from)) pretended::refuse(call, "not an executable graph");
    if (pretended::all.stream(call, stream).recording) pretended::refuse(call, "while it is recorded");
    for (const auto& work : from->work) pretended::all.add(call, stream, work);
    return 0;
}

} // extern "C"
