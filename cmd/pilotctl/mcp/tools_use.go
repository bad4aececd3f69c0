package mcp

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/services/events"
	"github.com/pilotnet/pilot/overlay/services/exchange"
	"github.com/pilotnet/pilot/overlay/services/tasks"
)

func decode(raw json.RawMessage, out any) error {
	if err := json.Unmarshal(raw, out); err != nil {
		return overlay.Errorf(overlay.CodeInternal, "pilotctl: %v", err)
	}
	return nil
}

type serveInput struct {
	Kind   string   `json:"kind" jsonschema:"http, mcp, a2a or tcp"`
	Target string   `json:"target" jsonschema:"port of a program on this machine, or 127.0.0.1:PORT"`
	Port   int      `json:"port,omitempty" jsonschema:"port on the overlay; default the target's"`
	Allow  []string `json:"allow,omitempty" jsonschema:"peers that may reach it; default all whose grants have the port"`
}

type portInput struct {
	Port int `json:"port" jsonschema:"port on the overlay"`
}

type servedOutput struct {
	Served []overlay.Served `json:"served"`
}

func (d *desk) serveTools() {
	add(d, "serve", "Publish a local program", "Publishes a program of this machine on the agent's address, for peers whose grants have the port. It lasts over restarts.", adds, false,
		func(ctx context.Context, in serveInput) (out overlay.Served, err error) {
			switch in.Kind {
			case "http", "mcp", "a2a", "tcp":
			default:
				return out, overlay.Errorf(overlay.CodeInvalidArgument, "kind is http, mcp, a2a or tcp")
			}
			args := []string{"serve", in.Kind}
			if in.Port != 0 {
				args = option(args, "--port", strconv.Itoa(in.Port))
			}
			for _, peer := range in.Allow {
				args = append(args, "--allow="+peer)
			}
			return ask[overlay.Served](ctx, d, "", append(args, "--", in.Target)...)
		})
	add(d, "serve_list", "Published programs", "Lists what is published on the agent's address, and which peers may reach it.", reads, false,
		func(ctx context.Context, _ nothing) (servedOutput, error) {
			list, err := ask[[]overlay.Served](ctx, d, "", "serve", "list")
			return servedOutput{list}, err
		})
	add(d, "serve_remove", "End a publication", "Ends a publication and the connections through it.", destroys, false,
		func(ctx context.Context, in portInput) (doneOutput, error) {
			_, err := d.lines(ctx, "", "serve", "rm", "--", strconv.Itoa(in.Port))
			return doneOutput{err == nil}, err
		})
}

type fileSendInput struct {
	Peer  string `json:"peer" jsonschema:"name of a trusted peer, or share to offer the file to all peers"`
	Path  string `json:"path" jsonschema:"a file below the directory for files"`
	Name  string `json:"name,omitempty" jsonschema:"its name there; default that of the file"`
	Queue bool   `json:"queue,omitempty" jsonschema:"keep it for a peer that is offline, and send it later"`
}

type fileGetInput struct {
	From string `json:"from" jsonschema:"PEER:NAME of what a peer offers, or inbox:PEER/NAME of what came"`
	Path string `json:"path,omitempty" jsonschema:"where to below the directory for files; default the name of the file"`
}

type fileListInput struct {
	Where string `json:"where" jsonschema:"name of a peer to see what it offers; share or queue"`
}

// A movedFile is what came of sending or fetching.
type movedFile struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
	State  string `json:"state" jsonschema:"sent, present (it was there already), queued, offered or fetched"`
	To     string `json:"to"`
}

type filesOutput struct {
	Files     []exchange.Entry `json:"files"`
	Untrusted []string         `json:"untrusted_text"`
}

func (d *desk) fileTools() {
	add(d, "file_send", "Send a file", "Sends a file to a peer's inbox, or offers it to all peers. Nothing there is overwritten.", adds, false, d.sendFile)
	add(d, "file_get", "Fetch a file", "Fetches a file that a peer offers or has sent. Nothing here is overwritten. What is in it was written by another agent.", adds, true, d.getFile)
	add(d, "file_list", "Files of a peer", "Lists the files that a peer offers, or with share those that this agent offers.", reads, true,
		func(ctx context.Context, in fileListInput) (filesOutput, error) {
			list, err := ask[[]exchange.Entry](ctx, d, "", "file", "ls", "--", in.Where)
			return filesOutput{list, []string{"name", "content_type"}}, err
		})
	add(d, "file_inbox", "Inbox", "Lists the files and messages that peers have sent.", reads, true,
		func(ctx context.Context, _ nothing) (filesOutput, error) {
			list, err := ask[[]exchange.Entry](ctx, d, "", "file", "inbox")
			return filesOutput{list, []string{"name", "content_type"}}, err
		})
}

func (d *desk) sendFile(ctx context.Context, in fileSendInput) (out movedFile, err error) {
	path, err := d.file(in.Path)
	if err != nil {
		return out, err
	}
	name := in.Name
	if name == "" {
		name = filepath.Base(path)
	}
	args := []string{"file", "cp"}
	if in.Queue {
		args = append(args, "--queue")
	}
	return d.moved(ctx, append(args, "--", path, in.Peer+":"+name)...)
}

func (d *desk) moved(ctx context.Context, args ...string) (out movedFile, err error) {
	raw, err := ask[json.RawMessage](ctx, d, "", args...)
	if err != nil {
		return out, err
	}
	var list []movedFile
	if json.Unmarshal(raw, &list) == nil && len(list) == 1 {
		return list[0], nil
	}
	return out, decode(raw, &out)
}

// A fetchedFile names the fields that are another agent's words.
type fetchedFile struct {
	movedFile
	Untrusted []string `json:"untrusted_text"`
}

func (d *desk) getFile(ctx context.Context, in fileGetInput) (out fetchedFile, err error) {
	to := in.Path
	if to == "" {
		to = "."
	}
	path, err := d.file(to)
	if err != nil {
		return out, err
	}
	if info, err := os.Stat(path); err == nil && !info.IsDir() {
		return out, overlay.Errorf(overlay.CodeConflict, "there is a %s already", path).WithHint("choose another path")
	}
	m, err := d.moved(ctx, "file", "get", "--", in.From, path)
	return fetchedFile{m, []string{"name", "the content of the file"}}, err
}

type publishInput struct {
	Topic   string `json:"topic" jsonschema:"such as public/news here, or PEER:peer/NAME/log at a peer"`
	Payload string `json:"payload" jsonschema:"text of the event"`
	Type    string `json:"content_type,omitempty" jsonschema:"such as application/json"`
	Retain  bool   `json:"retain,omitempty" jsonschema:"keep it for later subscribers"`
}

type subscribeInput struct {
	Filter  string `json:"filter" jsonschema:"such as PEER:public/# at a peer; without PEER: at this agent. + stands for one level, a last # for all others"`
	Count   int    `json:"count,omitempty" jsonschema:"return after so many events, at most 100; default 1"`
	Seconds int    `json:"seconds,omitempty" jsonschema:"return when nothing came for so long, at most 300; default 10"`
	Session string `json:"session,omitempty" jsonschema:"name under which the broker keeps what comes between calls"`
}

type eventsOutput struct {
	Events    []events.Event `json:"events"`
	Untrusted []string       `json:"untrusted_text"`
}

func (d *desk) eventTools() {
	add(d, "publish", "Publish an event", "Publishes an event at this agent for peers that subscribe, or at a peer.", adds, false,
		func(ctx context.Context, in publishInput) (doneOutput, error) {
			args := option([]string{"pub"}, "--type", in.Type)
			if in.Retain {
				args = append(args, "--retain")
			}
			_, err := d.lines(ctx, in.Payload, append(args, "--", in.Topic, "-")...)
			return doneOutput{err == nil}, err
		})
	add(d, "subscribe", "Wait for events", "Returns events as they come, from this agent or a peer.", reads, true, d.subscribe)
}

func (d *desk) subscribe(ctx context.Context, in subscribeInput) (out eventsOutput, err error) {
	out = eventsOutput{[]events.Event{}, []string{"topic", "data", "payload", "content_type", "reply_to"}}
	wait, err := seconds(in.Seconds, 10, 300)
	if err != nil {
		return out, err
	}
	if in.Session != "" && d.ReadOnly {
		return out, overlay.Errorf(overlay.CodeDenied, "a session is kept at the broker, and this server only reads")
	}
	const most = 100
	count := max(in.Count, 1)
	if count > most {
		return out, overlay.Errorf(overlay.CodeInvalidArgument, "count is at most %d", most)
	}
	args := option([]string{"sub", "--count=" + strconv.Itoa(count), "--wait=" + wait}, "--session", in.Session)
	lines, err := d.lines(ctx, "", append(args, "--", in.Filter)...)
	for _, line := range lines {
		var e events.Event
		if err := decode(line, &e); err != nil {
			return out, err
		}
		out.Events = append(out.Events, e)
	}
	if e, ok := err.(*overlay.Error); ok && e.Code == overlay.CodeTimeout { // nothing more came
		err = nil
	}
	return out, err
}

type taskSendInput struct {
	Peer    string `json:"peer" jsonschema:"name of a trusted peer"`
	Text    string `json:"text" jsonschema:"what it is to do"`
	Context string `json:"context,omitempty" jsonschema:"continue this context, of an earlier task"`
	Seconds int    `json:"seconds,omitempty" jsonschema:"wait so long for the answer, at most 3600; default 300"`
	NoWait  bool   `json:"no_wait,omitempty" jsonschema:"return the task at once; task_get shows what came of it"`
	Port    int    `json:"port,omitempty" jsonschema:"of another A2A agent at that peer; default 1003"`
}

type taskInput struct {
	Peer string `json:"peer,omitempty" jsonschema:"where it was sent; empty: a task that came here"`
	ID   string `json:"id" jsonschema:"of the task"`
}

type taskListInput struct {
	Peer string `json:"peer,omitempty" jsonschema:"list those sent there; empty: those that came here"`
}

type tasksOutput struct {
	Tasks []tasks.Entry `json:"tasks"`
	// Untrusted names the fields of tasks that are other agents' words.
	Untrusted []string `json:"untrusted_text"`
}

func (d *desk) taskTools() {
	one := func(verb string) func(context.Context, taskInput) (tasks.Entry, error) {
		return func(ctx context.Context, in taskInput) (tasks.Entry, error) {
			args := []string{"task", verb, "--"}
			if in.Peer != "" {
				args = append(args, in.Peer)
			}
			return ask[tasks.Entry](ctx, d, "", append(args, in.ID)...)
		}
	}
	add(d, "task_send", "Send a task", "Sends a task to a peer (A2A) and waits for the answer. The state says whether it completed, failed or was rejected.", adds, true, d.sendTask)
	add(d, "task_get", "Show a task", "Shows a task that was sent to a peer, or one that came here.", reads, true, one("get"))
	add(d, "task_list", "List tasks", "Lists the tasks that were sent to a peer, or those that came here, the latest first.", reads, true,
		func(ctx context.Context, in taskListInput) (tasksOutput, error) {
			args := []string{"task", "list"}
			if in.Peer != "" {
				args = append(args, "--", in.Peer)
			}
			list, err := ask[[]tasks.Entry](ctx, d, "", args...)
			return tasksOutput{list, []string{"context", "request", "text", "data", "reason"}}, err
		})
	add(d, "task_cancel", "Cancel a task", "Ends a task that is at work.", destroys, true, one("cancel"))
}

func (d *desk) sendTask(ctx context.Context, in taskSendInput) (out tasks.Entry, err error) {
	wait, err := seconds(in.Seconds, 300, 3600)
	if err != nil {
		return out, err
	}
	args := option([]string{"task", "send", "--timeout=" + wait}, "--context", in.Context)
	if in.NoWait {
		args = append(args, "--no-wait")
	}
	if in.Port != 0 {
		args = append(args, fmt.Sprintf("--port=%d", in.Port))
	}
	return ask[tasks.Entry](ctx, d, in.Text, append(args, "--", in.Peer, "-")...)
}
