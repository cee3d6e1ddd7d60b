// The pretended driver's streams, events and graphs. Work is done as late as it may be: when
// somebody waits for it, and then only what that wait is for. So a stream that reads what another
// was to write, without a wait between them, reads what was there before, and a host that writes
// over what is still to be copied copies the wrong bytes.
#pragma once

#include "processes.h"

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

namespace pretended {

// A lock that its holder may take again, and lets go of altogether while it waits for another
// process.
class Lock {
    std::mutex own;
    std::condition_variable changed;
    std::thread::id holder;
    unsigned depth = 0;

public:
    void lock() {
        std::unique_lock<std::mutex> guard(own);
        const auto here = std::this_thread::get_id();
        changed.wait(guard, [&] { return depth == 0 || holder == here; });
        holder = here;
        depth++;
    }
    void unlock() {
        const std::lock_guard<std::mutex> guard(own);
        if (--depth == 0) changed.notify_one();
    }
    // Lets others go on for a moment.
    void pause() {
        std::unique_lock<std::mutex> guard(own);
        const unsigned held = depth;
        depth = 0;
        changed.notify_one();
        guard.unlock();
        std::this_thread::sleep_for(std::chrono::microseconds(100));
        guard.lock();
        changed.wait(guard, [&] { return depth == 0; });
        holder = std::this_thread::get_id();
        depth = held;
    }
};

using Work = std::function<void()>;
using Guard = std::lock_guard<Lock>;
constexpr int LAUNCH_FAILED = 719;
constexpr auto PATIENCE = std::chrono::seconds(60); // with other processes

// What was recorded of a stream, to be played again.
struct Graph {
    std::vector<Work> work;
};

struct Stream {
    std::deque<Work> queue;
    uint64_t done = 0, queued = 0; // the work that is being done counts as done
    unsigned running = 0;          // how deep in it its runner is
    std::thread::id runner;
    std::unique_ptr<Graph> recording;

    bool is_run_elsewhere() const { return running > 0 && runner != std::this_thread::get_id(); }
    bool has_done(uint64_t position) const {
        return done - (is_run_elsewhere() ? 1 : 0) >= position;
    }
};

// One of the times that an event was recorded here, which others may want.
struct Record {
    uint32_t number;
    std::shared_ptr<Stream> stream;
    uint64_t position;
};

// A moment in a stream, of this process or another.
struct Event {
    std::shared_ptr<Stream> stream;
    uint64_t position = 0;
    bool happened = false;
    bool timed = true;
    std::chrono::steady_clock::time_point time;
    File file;            // where other processes may have it
    uint32_t number = 0;  // of its last record here, among all
    std::deque<Record> records; // of this process, not known to have happened

    ~Event() { file.close(); }
    Shared* shared() const { return file.place == nullptr ? nullptr : file.shared(); }
    // The last record, if another process made it; else 0.
    uint32_t foreign(const char* call) const {
        if (shared() == nullptr) return 0;
        if (shared()->destroyed.load() != 0) refuse(call, "an event that its owner has destroyed");
        const uint32_t last = shared()->recorded.load();
        return last == number ? 0 : last;
    }
};

struct Streams {
    Lock lock;                 // guards all of the driver: programs call from many threads
    bool failed = false;       // a device that failed once does nothing more
    std::map<void*, std::shared_ptr<Stream>> streams;
    std::map<void*, std::shared_ptr<Event>> events;
    std::set<Graph*> graphs, executables;
    // Copies from the program's own memory: they are taken from it at once and done late, beside
    // all streams, for these are made so that they do not wait for it.
    Stream unasked;
    unsigned recordings = 0;
    // of these, begun by this thread: streams are recorded in the mode that refuses calls to their
    // own thread alone
    static inline thread_local unsigned own_recordings = 0;
    bool serving = false;

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
        while (!failed && !stream.has_done(position)) {
            if (stream.is_run_elsewhere()) { // by one that waits for another process
                lock.pause();
                continue;
            }
            const Work work = std::move(stream.queue.front());
            stream.queue.pop_front();
            stream.done++;
            stream.running++;
            stream.runner = std::this_thread::get_id();
            work();
            stream.running--;
        }
        return failed ? LAUNCH_FAILED : 0;
    }
    int run_all(const char* call) {
        const Guard guard(lock);
        if (recordings > 0) refuse(call, "while a stream is recorded");
        run_until(unasked, unasked.queued);
        const auto now = streams; // others may come while one waits
        for (auto& [handle, stream] : now) run_until(*stream, stream->queued);
        return failed ? LAUNCH_FAILED : 0;
    }
    // Waits for what another process recorded.
    int wait_for(const Event& event, uint32_t number, const char* call) {
        const Guard guard(lock);
        raise_to(event.shared()->wanted, number);
        const auto begun = std::chrono::steady_clock::now();
        while (!failed && event.shared()->happened.load() < number) {
            if (std::chrono::steady_clock::now() - begun > PATIENCE) {
                refuse(call, "an event of another process that does not happen");
            }
            lock.pause();
        }
        return failed ? LAUNCH_FAILED : 0;
    }
    // Does what other processes want, as long as the program runs.
    void serve() {
        for (;;) {
            std::this_thread::sleep_for(std::chrono::microseconds(200));
            const Guard guard(lock);
            std::vector<Record> wanted;
            for (auto& [handle, event] : events) {
                Shared* shared = event->shared();
                if (shared == nullptr) continue;
                auto& records = event->records;
                while (!records.empty() && records.front().number <= shared->happened.load()) {
                    records.pop_front();
                }
                for (const Record& record : records) {
                    if (record.number <= shared->wanted.load()) wanted.push_back(record);
                }
            }
            for (const Record& record : wanted) run_until(*record.stream, record.position);
        }
    }
    void serve_others() {
        const Guard guard(lock);
        if (serving) return;
        serving = true;
        std::thread([this] { serve(); }).detach();
    }
    // What CUDA refuses a thread while it records a stream.
    void none_recorded(const char* call) {
        if (own_recordings > 0) refuse(call, "while a stream is recorded");
    }
    bool idle() {
        if (failed) return true; // nothing of it will be done
        if (!unasked.queue.empty()) return false;
        for (auto& [handle, stream] : streams) {
            if (!stream->queue.empty() || stream->running > 0) return false;
        }
        return true;
    }
    bool empty() { return streams.empty() && events.empty() && graphs.empty() && executables.empty(); }
};

inline Streams& all = *new Streams; // a thread may use it to the end

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
    if (stream.recording) pretended::refuse("cuStreamSynchronize", "while it is recorded");
    return pretended::all.run_until(stream, stream.queued);
}
int cuStreamWaitEvent(void* handle, void* event_handle, unsigned) {
    const pretended::Guard guard(pretended::all.lock);
    constexpr const char* call = "cuStreamWaitEvent";
    if (pretended::all.stream(call, handle).recording) pretended::refuse(call, "while it is recorded");
    const auto shared = pretended::all.event(call, event_handle);
    const pretended::Event& event = *shared;
    if (std::getenv("IGNORE_WAITS") != nullptr) return 0;
    if (const uint32_t number = event.foreign(call)) {
        pretended::all.add(call, handle, [=] { pretended::all.wait_for(*shared, number, call); });
        return 0;
    }
    if (!event.stream) return 0; // nothing to wait for
    pretended::all.add(call, handle, [stream = event.stream, position = event.position] {
        pretended::all.run_until(*stream, position);
    });
    return 0;
}

int cuEventCreate(void** event, unsigned flags) {
    const pretended::Guard guard(pretended::all.lock);
    auto made = std::make_shared<pretended::Event>();
    made->timed = (flags & 2) == 0;
    if ((flags & 4) != 0) { // for other processes
        if (made->timed) return 1;
        made->file = pretended::File::make(pretended::OF_EVENT, 0);
        if (made->file.place == nullptr) return 2;
        pretended::all.serve_others();
    }
    *event = made.get();
    pretended::all.events[*event] = std::move(made);
    return 0;
}
int cuEventDestroy_v2(void* handle) {
    const pretended::Guard guard(pretended::all.lock);
    const auto& event = *pretended::all.event("cuEventDestroy", handle);
    if (event.file.file >= 0) event.shared()->destroyed = 1;
    return pretended::all.events.erase(handle), 0;
}
int cuEventRecord(void* handle, void* stream_handle) {
    const pretended::Guard guard(pretended::all.lock);
    constexpr const char* call = "cuEventRecord";
    if (pretended::all.stream(call, stream_handle).recording) {
        pretended::refuse(call, "while the stream is recorded");
    }
    auto& event = pretended::all.event(call, handle);
    event->foreign(call); // it is sound
    event->happened = false;
    event->stream = pretended::all.streams[stream_handle];
    event->position = event->stream->queued + 1;
    if (pretended::Shared* shared = event->shared()) {
        event->number = ++shared->recorded;
        event->records.push_back({event->number, event->stream, event->position});
    }
    const auto [number, position] = std::pair(event->number, event->position);
    pretended::all.add(call, stream_handle, [event, number = number, position = position] {
        if (event->shared() != nullptr) pretended::raise_to(event->shared()->happened, number);
        if (event->position != position) return; // recorded anew since
        event->happened = true;
        event->time = std::chrono::steady_clock::now();
    });
    return 0;
}
int cuEventSynchronize(void* handle) {
    const pretended::Guard guard(pretended::all.lock);
    pretended::all.none_recorded("cuEventSynchronize");
    constexpr const char* call = "cuEventSynchronize";
    const auto shared = pretended::all.event(call, handle);
    const pretended::Event& event = *shared;
    if (const uint32_t number = event.foreign(call)) {
        return pretended::all.wait_for(event, number, call);
    }
    return event.stream ? pretended::all.run_until(*event.stream, event.position) : 0;
}
// What another process recorded it does when it is looked for; what was recorded here nobody does.
int cuEventQuery(void* handle) {
    const pretended::Guard guard(pretended::all.lock);
    constexpr const char* call = "cuEventQuery";
    const pretended::Event& event = *pretended::all.event(call, handle);
    if (pretended::all.failed) return pretended::LAUNCH_FAILED;
    if (const uint32_t number = event.foreign(call)) {
        pretended::raise_to(event.shared()->wanted, number);
        return event.shared()->happened.load() >= number ? 0 : 600;
    }
    return !event.stream || event.stream->has_done(event.position) ? 0 : 600;
}
int cuEventElapsedTime_v2(float* ms, void* start, void* end) {
    const pretended::Guard guard(pretended::all.lock);
    const pretended::Event& from = *pretended::all.event("cuEventElapsedTime", start);
    const pretended::Event& to = *pretended::all.event("cuEventElapsedTime", end);
    if (!from.stream || !to.stream || !from.timed || !to.timed) return 400;
    if (!from.happened || !to.happened) return 600;
    *ms = std::chrono::duration<float, std::milli>(to.time - from.time).count();
    return 0;
}

int cuIpcGetEventHandle(pretended::Handle* handle, void* event_handle) {
    const pretended::Guard guard(pretended::all.lock);
    const auto& event = *pretended::all.event("cuIpcGetEventHandle", event_handle);
    if (std::getenv("NO_IPC") != nullptr) return 801;
    if (event.shared() == nullptr) return 400;
    return *handle = event.file.handle, 0;
}
int cuIpcOpenEventHandle(void** event, pretended::Handle handle) {
    const pretended::Guard guard(pretended::all.lock);
    auto made = std::make_shared<pretended::Event>();
    made->timed = false;
    const int answer = pretended::File::open(pretended::OF_EVENT, handle, &made->file);
    if (answer != 0) return answer;
    *event = made.get();
    pretended::all.events[*event] = std::move(made);
    pretended::all.serve_others();
    return 0;
}

int cuStreamBeginCapture_v2(void* handle, unsigned mode) {
    const pretended::Guard guard(pretended::all.lock);
    constexpr const char* call = "cuStreamBeginCapture";
    auto& stream = pretended::all.stream(call, handle);
    if (mode != 1) pretended::refuse(call, "a mode that is not pretended");
    if (stream.recording) pretended::refuse(call, "it is recorded already");
    pretended::all.recordings++;
    pretended::all.own_recordings++;
    stream.recording = std::make_unique<pretended::Graph>();
    return 0;
}
int cuStreamEndCapture(void* handle, void** graph) {
    const pretended::Guard guard(pretended::all.lock);
    auto& stream = pretended::all.stream("cuStreamEndCapture", handle);
    if (!stream.recording) pretended::refuse("cuStreamEndCapture", "it is not recorded");
    if (pretended::all.own_recordings == 0) {
        pretended::refuse("cuStreamEndCapture", "another thread records it");
    }
    pretended::all.recordings--;
    pretended::all.own_recordings--;
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
