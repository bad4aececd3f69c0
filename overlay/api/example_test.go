package api_test

import (
	"fmt"
	"log"
	"net/http"

	"github.com/pilotnet/pilot/overlay/api"
)

// A web server that greets each caller by the name that the owner of this machine
// gave it. There is no login: on the overlay, the source address is the identity.
func ExampleClient_Whois() {
	agent := api.NewClient("/run/pilot/pilot.sock")
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		who, err := agent.Whois(r.Context(), r.RemoteAddr)
		if err != nil {
			http.Error(w, "for peers only", http.StatusForbidden)
			return
		}
		fmt.Fprintf(w, "hello %s, your key is %s\n", who.Name, who.Fingerprint)
	})
	// The agent's own address, so that nobody in the LAN can pose as a peer.
	log.Fatal(http.ListenAndServe("[fd50:494c:4f54::1a2b:3c4d]:8080", nil))
}
