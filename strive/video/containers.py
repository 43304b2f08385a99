"""Which of FFmpeg's demuxers may open a file: two lists that together name all of a build's.

Taken is what holds pictures that move in one local file. Refused is what opens other files or
addresses (playlists, manifests, patterns of names), what is no file (devices, filters), still
images, text drawn as pictures, raw pictures whose size a name would have to tell, and what holds
sound or words alone.
"""

TAKEN = frozenset(
    """
    3g2 3gp 3dostr 4xm alp amv anm apng apv argo_brp argo_cvg asf asf_o av1 avi avs avs2 avs3
    bethsoftvid bfi bink bmv c93 cavsvideo cdg cdxl cine dcstr derf dfa dhav dirac dnxhd dsicin
    dv dxa ea ea_cdata evc film_cpk filmstrip flic flv frm gdv gif gxf h261 h263 h264 hevc hnm
    hxvs idcin iff ifv ingenient ipmovie ipu iss iv8 ivf ivr jpegxl_anim jv kux lmlm4 luodat lvf
    lxf m4v matroska webm mgsts mjpeg mjpeg_2000 mlv mm mods moflex mov mp4 m4a mj2 mpeg mpegts
    mpegvideo msnwctcp mtv mv mvi mxf mxg nc nsv nut nuv obu ogg paf pdv pmp psxstr pva r3d rl2
    rm roq rpl ser sga siff simbiosis_imx smjpeg smk smush swf thp tiertexseq tmv ty usm vc1
    vc1test vidc vividas vivo vmd vvc wc3movie wtv wsvqa xmd xmv yop yuv4mpegpipe webp_anim
    live_flv
    """.split()  # noqa: SIM905 - a list of 140 quoted names would not be read
)
_REFUSED = {
    "open other files or addresses": """
        concat dash hls hds imf sdp rtp rtsp sap redir applehttp smoothstreaming
        webm_dash_manifest mpjpeg
    """,
    "still images": """
        image2 image2pipe alias_pix brender_pix bmp_pipe cri_pipe dds_pipe dpx_pipe exr_pipe
        gem_pipe gif_pipe hdr_pipe ico j2k_pipe jpeg_pipe jpegls_pipe jpegxl_pipe
        jpegxs_pipe pam_pipe pbm_pipe pcx_pipe pfm_pipe pgm_pipe pgmyuv_pipe pgx_pipe
        phm_pipe photocd_pipe pictor_pipe png_pipe ppm_pipe psd_pipe qdraw_pipe qoi_pipe
        sgi_pipe sunrast_pipe svg_pipe svs tiff_pipe txd vbn_pipe webp_pipe xbm_pipe
        xpm_pipe xwd_pipe fits msp
    """,
    "devices and filters": """
        alsa fbdev kmsgrab lavfi oss pulse sndio video4linux2 v4l2 x11grab xcbgrab jack
        openal dshow gdigrab avfoundation bktr decklink iec61883 libcdio libdc1394 vfwcap
        android_camera audiotoolbox
    """,
    "text drawn, raw pictures of unknown size, discs, scripts": """
        adf bin idf tty xbin rawvideo bitpacked v210 v210x mpegtsraw data ffmetadata vobsub
        dvdvideo bluray avisynth vapoursynth s337m
    """,
    "sound alone": """
        aa aac aax ac3 ac4 ace acm act adp ads adx aea afc aiff aix alaw amr amrnb amrwb
        apac apc ape apm aptx aptx_hd argo_asf ast au avr bfstm bit boa bonk brstm caf
        codec2 codec2raw daud dfpwm dsf dss dts dtshd eac3 epaf f32be f32le f64be f64le flac
        fsb fwse g722 g723_1 g726 g726le g728 g729 genh gsm hca hcom iamf ilbc ircam kvag
        laf lc3 loas mca mlp mmf mp3 mpc mpc8 msf mtaf mulaw musx binka nistsphere nsp oma
        osq pp_bnk pvf qcp qoa redspark rka rsd rso s16be s16le s24be s24le s32be s32le s8
        sbc sbg scd sdns sdr2 sds sdx shn sln smus sol sox spdif svag tak truehd tta u16be
        u16le u24be u24le u32be u32le u8 vag voc vpk vqf w64 wady wav wavarc wsaud wsd wv
        wve xa xvag xwma libgme libmodplug libopenmpt
    """,
    "words alone": """
        aqtitle ass dvbsub dvbtxt jacosub lrc mcc microdvd mpl2 mpsub pjs rcwt realtext sami
        scc srt stl subviewer subviewer1 sup tedcaptions vplayer webvtt
    """,
}
REFUSED = frozenset(" ".join(_REFUSED.values()).split())
FORMAT_WHITELIST = ",".join(sorted(TAKEN))
